"""The command line: ``topicscale COMMAND``, one command a job.

Results go to the standard output, everything else to the error stream. Exit codes: 0 done; 1 units failed, or too much
of the input is bad; 2 the request is wrong; 130 interrupted (a store is left that the same command goes on with).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jobs.arguments import parser
from topicscale import storage
from topicscale.config import MASTERS, Config, load
from topicscale.errors import JobFailed, RequestError, StoreError, TopicscaleError
from topicscale.files import said
from topicscale.texts import printable

DONE, FAILED, BAD_REQUEST, INTERRUPTED = 0, 1, 2, 130
ENGINES = {
    "grpc": "Spark",
    "ray": "Ray",
    "deltalake": "A Delta table",
    "_internal": "A Delta table",  # where delta-rs says its errors are from
    "pyarrow": "A table",
}
"""Packages whose errors tell of a failed engine or disk rather than of a bug."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["submit"]:
        options, options.sent = parser().parse_known_args(given)
    else:
        options = parser().parse_args(given)
    # a cluster manager stops a job with SIGTERM: leave the store as Ctrl-C does
    signal.signal(signal.SIGTERM, _interrupt)
    # py4j logs the traceback of what it raises, an interrupt too, to its own logger and to the root
    logging.getLogger().addFilter(_no_py4j)
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    try:
        if options.storage is not None:
            storage.use(load(file=options.storage).storage)
        return _COMMANDS[options.command](options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (RequestError, StoreError) as error:
        return _complain(options, error, BAD_REQUEST)
    except (JobFailed, TopicscaleError) as error:
        return _complain(options, error, FAILED)
    except BrokenPipeError:
        if options.command in ("submit", "jobs"):  # whoever read what a job says has left
            return DONE
        why = "The connection to an engine broke. What is finished is kept: run the same command again to go on."
        return _complain(options, why, FAILED)
    except OSError as error:
        if error.errno is None:  # of an object store, from pyarrow or delta-rs
            return _complain(
                options, f"A file failed: {said(error)}. What is finished is kept: run the same command again to go on.", FAILED
            )
        where = f": {error.filename}" if error.filename else ""
        return _complain(options, f"{error.strerror}{where}. What is finished is kept: run the same command again to go on.", FAILED)
    except Exception as error:
        engine = ENGINES.get(type(error).__module__.partition(".")[0])
        if engine is None:
            raise  # a bug of ours: its traceback is what helps
        why = " ".join(str(error).split())[:1000] or type(error).__name__
        return _complain(options, f"{engine} failed: {why}. What is finished is kept: run the same command again to go on.", FAILED)


def configuration(options: argparse.Namespace) -> Config:
    """Return the configuration that the options of ``run`` describe."""
    chosen: dict[str, dict[str, Any]] = {}

    def put(section: str, key: str, value: Any) -> None:
        if value is not None:
            chosen.setdefault(section, {})[key] = value

    put("input", "paths", options.input)
    put("input", "text_column", options.text_column)
    put("input", "id_column", options.id_column)
    put("input", "keep", options.keep)
    put("partition", "column", options.partition_column)
    put("partition", "number", options.partitions)
    put("topics", "min_size", options.min_topic_size)
    if options.topics == "auto":
        chosen.setdefault("topics", {})["number"] = None  # whatever a configuration file says
    elif options.topics is not None:
        if not options.topics.isdecimal():
            raise RequestError(f"--topics must be a number or auto. Got {options.topics!r} instead.")
        put("topics", "number", int(options.topics))
    return load(file=options.config, overrides=options.set, values=chosen)


def _say(text: str, *, file: Any = None) -> None:
    """Print. A reader that has left (``| head``) is no failure: what is to be done is done."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=file, flush=file is not None)


def _tell(options: argparse.Namespace, found: Any, describe: Callable[[Any], str]) -> None:
    """Print a result, as JSON or described for people; other people's text in it commands no terminal."""
    if options.json:
        # a file's name may hold bytes that are no UTF-8: JSON's own escapes stand for them
        _say(json.dumps(found, indent=2, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode())
    else:
        _say(printable(describe(found)))


def _run(options: argparse.Namespace) -> int:
    from jobs.run import run

    config = configuration(options)
    ui = _ui(options)
    if options.dry_run:
        from jobs.dry_run import describe, dry_run

        found = dry_run(config, options.store)
        _tell(options, found, describe)
        return DONE
    return _ended(run(config, options.store, ui=ui), options)


def _ended(result: Any, options: argparse.Namespace) -> int:
    """Print how a run ended and return the exit code."""
    if options.json:
        _say(json.dumps(dataclasses.asdict(result), indent=2))
    elif result.nothing_to_do:
        _say(f"Nothing to do: {result.store} already holds this run (generation {result.generation}, {result.topics:,} topics).")
    else:
        share = result.outliers / max(result.documents, 1)
        _say(
            f"{result.documents:,} documents, {result.topics:,} topics, {share:.1%} outliers, {result.seconds['total']:.0f} s "
            f"-> {result.store} (generation {result.generation})"
        )
        _say(f"Next: topicscale topics --store {options.store}   or   topicscale report --store {options.store} --output report.html")
    for stage, units in () if options.json else result.failed.items():  # there they are in the result
        for partition_id, error in sorted(units.items()):
            _say(printable(f"failed: {stage} of partition {partition_id}: {error}"), file=sys.stderr)
    return FAILED if result.failed else DONE


def _plan(options: argparse.Namespace) -> int:
    from jobs.plan import describe, plan, to_dict

    found = plan(
        documents=_number(options.documents, "--documents"),
        tokens=options.tokens,
        gpus=options.gpus,
        spark_cores=options.spark_cores,
        ray_cpus=options.ray_cpus,
        dimensions=options.model_dim,
        topics=options.topics,
        labels=options.labels,
        gpu_hour=options.cost_gpu_hour,
        core_hour=options.cost_core_hour,
        gigabyte_month=options.cost_gb_month,
        rates=options.rates,
    )
    _tell(options, to_dict(found), lambda _: describe(found))
    return DONE


def _number(text: str, name: str) -> int:
    """Return a whole number that may be written as 1e9."""
    try:
        value = float(text.replace("_", "").replace(",", ""))
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise RequestError(f"{name} must be a whole number, such as 1000000 or 1e6. Got {text!r} instead.")


def _benchmark(options: argparse.Namespace) -> int:
    from jobs.benchmark import benchmark, describe

    config = load(file=options.config, overrides=options.set, values=_input_of(options))
    found = benchmark(
        config,
        options.output,
        documents=None if options.documents is None else _number(options.documents, "--documents"),
        spark_cores=options.spark_cores,
        folder=options.folder,
        ui=_ui(options),
    )
    _tell(options, found, describe)
    return DONE


def _input_of(options: argparse.Namespace) -> dict[str, Any]:
    values: dict[str, Any] = {"input": {"paths": options.input}} if options.input else {}
    if options.text_column:
        values.setdefault("input", {})["text_column"] = options.text_column
    if options.ray:
        values["ray"] = {"address": options.ray}
    if options.spark:
        values["spark"] = {"remote" if options.spark.startswith("sc://") else "master": options.spark}
    return values


def _status(options: argparse.Namespace) -> int:
    from jobs.status import describe, status

    found = status(options.store)
    _tell(options, found, describe)
    return DONE


def _topics(options: argparse.Namespace) -> int:
    from jobs.topics import describe, topics

    found = topics(options.store, top=options.top)
    _tell(options, found, describe)
    return DONE


def _report(options: argparse.Namespace) -> int:
    from jobs.report import report

    path = report(options.store, options.output)
    _say(json.dumps({"report": str(path)}) if options.json else f"Report: {path}")
    return DONE


def _evaluate(options: argparse.Namespace) -> int:
    if options.model:
        return _judge(options)
    if options.task:
        raise RequestError("--task is what models are judged by. Add --model.")
    if options.store is None:
        raise RequestError("evaluate must be given either --store (its topics) or --model (embedding models).")
    from jobs.evaluate import describe, evaluate

    found = evaluate(options.store, labels=options.labels)
    _tell(options, found, describe)
    return DONE


def _judge(options: argparse.Namespace) -> int:
    from jobs.judge import describe, judge

    said = None if options.json else lambda line: _say(line, file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed and others log to the standard output, which is for the result
        found = judge(options.model, options.task, store=options.store, labels=options.labels, progress=said)
    _tell(options, found, describe)
    return DONE


def _update(options: argparse.Namespace) -> int:
    from jobs import update

    if options.refit == bool(options.input):
        raise RequestError("update must be given either --input (new documents) or --refit (fit all documents anew).")
    if options.refit:
        result = update.refit(options.store, overrides=options.set, ui=_ui(options))
        return _ended(result, options)
    found = update.update(options.input, options.store, overrides=options.set, ui=_ui(options))
    _tell(options, found, update.describe)
    return DONE


def _forget(options: argparse.Namespace) -> int:
    from jobs.forget import describe, forget

    found = forget(options.ids, options.store, ui=_ui(options))
    _tell(options, found, describe)
    return DONE


def _label(options: argparse.Namespace) -> int:
    from jobs.label import describe, label

    topics = None
    if options.topics is not None:
        parts = [part.strip() for part in options.topics.split(",") if part.strip()]
        if not parts or not all(part.isdecimal() for part in parts):
            raise RequestError(f"--topics must be topic ids with commas between them. Got {options.topics!r} instead.")
        topics = {int(part) for part in parts}
    found = label(
        options.store,
        aspect=options.aspect,
        topics=topics,
        only_unlabelled=options.only_unlabelled,
        file=options.config,
        overrides=options.set,
        ui=_ui(options),
    )
    _tell(options, found, describe)
    return FAILED if found["fallback"] and not found["labelled"] else DONE


def _finetune(options: argparse.Namespace) -> int:
    from jobs.finetune import describe, describe_plan, finetune, plan, request
    from topicscale.finetune.steps import of_text
    from topicscale.registry import REJECTED

    values: dict[str, Any] = {}
    if options.recipe is not None:
        if load(file=options.config, overrides=options.set).finetune.steps:
            raise RequestError("--recipe must be left out where the configuration has finetune.steps, which say what is trained. Got both.")
        values["steps"] = list(of_text(options.recipe))
    for key in ("base", "workers", "measure"):
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    if options.judge:
        values["judges"] = options.judge
    config = load(file=options.config, overrides=options.set, values={"finetune": values})
    columns = _columns(options.columns)
    data = {"store": options.store, "input": options.input or (), "columns": columns}
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed and others log to the standard output, which is for the result
        found = (
            plan(request(config, options.output, **data))
            if options.dry_run
            else finetune(config, options.output, **data, force=options.force, ui=_ui(options))
        )
    if options.dry_run:
        _tell(options, found, describe_plan)
        return DONE
    _tell(options, found, describe)
    return FAILED if found["status"] == REJECTED else DONE


def _columns(text: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else []:
        ours, equals, theirs = part.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise RequestError(
                f"--columns must be name=column with commas between them (anchor=title,positive=body). Got {text!r} instead."
            )
        found[ours.strip()] = theirs.strip()
    return found


def _models(options: argparse.Namespace) -> int:
    from jobs.models import describe, models

    found = models(options.store)
    _tell(options, found, describe)
    return DONE


def _merge(options: argparse.Namespace) -> int:
    from jobs.merge import describe, merge

    similarity: Any = options.similarity
    if similarity != "auto":
        try:
            similarity = float(similarity)
        except ValueError:
            raise RequestError(f"--similarity must be auto or a number between 0 and 1. Got {similarity!r} instead.") from None
    found = merge(options.inputs, options.store, similarity=similarity, match=options.match, documents=options.documents, ui=_ui(options))
    _tell(options, found, describe)
    return DONE


def _diff(options: argparse.Namespace) -> int:
    from jobs.diff import describe, diff

    found = diff(getattr(options, "from"), options.to, min_change=options.min_change)
    _tell(options, found, describe)
    return DONE


def _export(options: argparse.Namespace) -> int:
    if options.model is not None:
        return _export_model(options)
    if options.store is None:
        raise RequestError("export must be given either --store (its topics) or --model (an embedding model).")
    from jobs.export import MIN_DOCUMENTS, describe, export

    if not options.topics_only:
        raise RequestError("Only topics can be exported for now. Add --topics-only.")
    if options.formats is not None or options.reference or options.task:
        raise RequestError("--formats, --reference and --task are for an embedding model. Leave them out without --model.")
    least = MIN_DOCUMENTS if options.min_document_frequency is None else options.min_document_frequency
    found = export(options.store, options.output, min_documents=least, site=options.site)
    _tell(options, found, describe)
    return DONE


def _export_model(options: argparse.Namespace) -> int:
    from jobs.portable import FORMATS, describe, export

    if options.topics_only or options.site is not None or options.min_document_frequency is not None:
        raise RequestError("--topics-only, --site and --min-document-frequency are for the topics of a store. Leave them out with --model.")
    said = None if options.json else lambda line: _say(line, file=sys.stderr)
    formats = list(FORMATS) if options.formats is None else [name.strip() for name in options.formats.split(",") if name.strip()]
    with contextlib.redirect_stdout(sys.stderr):
        found = export(
            options.model,
            options.output,
            formats=formats,
            reference=options.reference,
            tasks=options.task,
            store=options.store,
            progress=said,
        )
    _tell(options, found, describe)
    return DONE


def _submit(options: argparse.Namespace) -> int:
    from jobs import submit

    asked = _submission(options)
    address = submit.address_of(options.ray)
    say = _sayer(options)
    job = submit.submit(asked, address, say=say)
    beside = f"--ray {address}"
    if options.no_wait:
        _say(json.dumps({"job": job}) if options.json else f"{job}\nFollow it with: topicscale jobs logs {job} --follow {beside}")
        return DONE
    say(f"Submitted as {job}. Ctrl-C stops following it; to stop the job: topicscale jobs stop {job} {beside}")
    return _follow(job, address, options)


def _paths(option: str, given: str) -> list[str]:
    """Return the paths in what an option was given: NAME=PATH of inputs, KIND=PATH,PATH:COLUMNS of tasks."""
    if option == "inputs":
        return [given if os.path.isabs(given) else given.partition("=")[2] or given]
    if option not in ("task", "judge", "finetune.judges"):
        return [given]
    told = given.partition("=")[2]
    return [] if not told else [told] if "://" in told else [path.strip() for path in told.partition(":")[0].split(",")]


def _check_places(wanted: argparse.Namespace, *, sent: bool) -> None:
    """Raise RequestError where a command that is for a cluster names paths of this machine; ``sent``: a folder goes along."""
    from topicscale.finetune.steps import parse

    if wanted.command == "run":
        config = configuration(wanted)
    else:
        values = _input_of(wanted) if wanted.command == "benchmark" else None
        config = load(file=getattr(wanted, "config", None), overrides=getattr(wanted, "set", []), values=values)
    # a model's name in the store is no path
    files = ["ids", "reference", "task", "judge", "rates", "folder"]
    files += ["output"] if wanted.command != "finetune" or wanted.store is None else []
    files += ["input"] if wanted.command == "finetune" else []
    places = {f"--{name}": getattr(wanted, name, None) or [] for name in ("store", "input", "inputs", "from", "to", *files)}
    if wanted.command in ("run", "benchmark"):
        places["input.paths"] = config.input.paths
    if wanted.command == "finetune" and config.finetune.steps:
        places["finetune.steps"] = [path for step in parse(config.finetune) for part in step.parts for path in part.input]
    if wanted.command == "finetune":
        places["finetune.judges"] = config.finetune.judges
    for option, given in places.items():
        for path in [given] if isinstance(given, str) else given:
            for bare in _paths(option.removeprefix("--"), path):
                storage.address(bare)
                if "://" not in bare and not os.path.isabs(bare):
                    raise RequestError(f"{option} must be an absolute path or an address, as it is the cluster's. Got {path!r} instead.")
                if "://" in bare and option.removeprefix("--") in (*files, "finetune.steps", "finetune.judges"):
                    raise RequestError(f"{option} must be an absolute path: it is a file of the cluster's machines. Got {path!r} instead.")
    names = {f"--{option}": getattr(wanted, option, None) or [] for option in ("model", "base")}
    names |= {"embedding.model": config.embedding.model, "finetune.base": config.finetune.base}
    names |= {"llm.model": config.llm.model, "llm.prompt": config.llm.prompt or []}
    for option, given in names.items():
        for name in [given] if isinstance(given, str) else given:
            # what is in the folder that goes along is there, and a name alone that is a folder's here may be the store's
            if not sent and not os.path.isabs(name) and (os.path.isfile(name) or (os.sep in name and os.path.isdir(name))):
                raise RequestError(
                    f"{option} must be a name or an absolute path, as it is the cluster's. Got {name!r}, which is on this machine, instead."
                )


def _submission(options: argparse.Namespace) -> Any:
    from jobs.submit import Submission, runtime_env

    command = [*options.sent, *(["--json"] if options.json else [])]
    if not options.sent or options.sent[0] in ("submit", "jobs"):
        raise RequestError(f"submit must be given a command of topicscale, such as run. Got {' '.join(options.sent) or 'none'} instead.")
    wanted = parser().parse_args(command)  # what is wrong with the command is said here and now
    _check_places(wanted, sent=options.working_dir is not None)
    if wanted.storage is not None:
        load(file=wanted.storage)
    if "token=" in (options.spark or ""):
        raise RequestError(
            "--spark must hold no token: Ray's job API shows it to whoever asks. Set SPARK_CONNECT_AUTHENTICATE_TOKEN in the environment "
            "of the cluster's machines."
        )
    if options.spark is not None and not options.spark.startswith(("sc://", *MASTERS)):
        raise RequestError(
            f"--spark must be a Spark master (spark://host:7077, k8s://..., yarn) or a Spark Connect address (sc://host:15002). "
            f"Got {options.spark!r} instead."
        )
    files = {f"--{name}": given for name in ("config", "storage") if (given := getattr(wanted, name, None)) is not None}
    return Submission(
        command,
        store=getattr(wanted, "store", None),
        files={option: file for option, file in files.items() if os.path.isfile(file)},  # the others name presets
        spark=options.spark,
        working_dir=options.working_dir,
        image=options.image,
        runtime_env=runtime_env(options.runtime_env),
        job_id=options.job_id,
    )


def _follow(job: str, address: str, options: argparse.Namespace) -> int:
    from jobs import submit

    log = sys.stderr if options.json else sys.stdout
    ended = submit.follow(job, address, write=lambda text: print(printable(text), end="", file=log, flush=True), say=_sayer(options))
    if options.json:
        _say(json.dumps(dataclasses.asdict(ended)))
    else:
        _say(printable(f"{job}: {ended.status.lower()}{f': {ended.message}' if ended.exit_code else ''}"), file=sys.stderr)
    return ended.exit_code


def _jobs(options: argparse.Namespace) -> int:
    from jobs import submit

    address = submit.address_of(options.ray)
    if options.action == "list":
        found = submit.jobs(address)
        _tell(options, found, submit.describe)
        return DONE
    if options.job is None:
        raise RequestError(f"jobs {options.action} must be given a job's id. See: topicscale jobs list --ray {address}")
    if options.action == "logs":
        if options.follow:
            return _follow(options.job, address, options)
        log = submit.logs(options.job, address)
        _tell(options, {"job": options.job, "log": log}, lambda _: log.removesuffix("\n"))
        return DONE
    ended = submit.stop(options.job, address)
    _say(json.dumps(dataclasses.asdict(ended)) if options.json else f"{ended.job}: {ended.status.lower()}")
    return DONE


def _sayer(options: argparse.Namespace) -> Any:
    from jobs.progress import Ui

    return functools.partial(Ui("json" if options.json else "auto").log, "submit")


def _ui(options: argparse.Namespace) -> Any:
    from jobs.progress import Ui

    return Ui("json" if options.json else "quiet" if options.quiet else "auto")


def _complain(options: argparse.Namespace, error: object, code: int) -> int:
    told = {"error": str(error), "kind": type(error).__name__, "exit_code": code}
    _say(json.dumps(told) if options.json else printable(f"error: {error}"), file=sys.stderr)
    return code


def _interrupt(*_: object) -> None:
    # while Ray starts its own handler comes first, and aborts the process by an alarm after 3 s: too soon for what is to be tidied up
    signal.alarm(0)
    raise KeyboardInterrupt


def _no_py4j(record: logging.LogRecord) -> bool:
    return "while sending command" not in record.getMessage()


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "update": _update,
    "forget": _forget,
    "label": _label,
    "finetune": _finetune,
    "models": _models,
    "merge": _merge,
    "export": _export,
    "plan": _plan,
    "benchmark": _benchmark,
    "status": _status,
    "topics": _topics,
    "report": _report,
    "evaluate": _evaluate,
    "diff": _diff,
    "submit": _submit,
    "jobs": _jobs,
}


def entry(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave the process: what the command ``topicscale`` is."""
    try:
        code = main(arguments)
    except SystemExit as left:  # argparse's
        code = left.code if isinstance(left.code, int) else BAD_REQUEST
    leave(code)


def leave(code: int) -> NoReturn:
    """Leave the process with an exit code.

    Arrow's threads may still be letting go of Python objects when the interpreter is taken down. One that asks for the interpreter
    then is ended by it, which C++ answers with SIGABRT, after the result was printed. So the interpreter is not taken down.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a reader that has left
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
