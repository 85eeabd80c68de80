// The table of topics: search, sort, open. Announces what is chosen as events, so that the map can follow.
(() => {
  'use strict';
  const $ = (id) => document.getElementById(id);
  const body = $('rows'), search = $('search'), scroll = $('scroll');
  const rows = [...body.querySelectorAll('tr.topic')];
  const detail = (row) => row.nextElementSibling;
  const button = (row) => row.querySelector('button');
  const tell = (name, value) => document.dispatchEvent(new CustomEvent(name, { detail: value }));
  let open = null;
  // on a phone the table begins with its first rows only
  const lengthen = () => body.classList.remove('short');
  if (rows.length > 15) body.classList.add('short');
  $('all').addEventListener('click', lengthen);

  const choose = (row, from) => {
    if (open) {
      detail(open).hidden = true;
      open.classList.remove('open');
      button(open).setAttribute('aria-expanded', 'false');
    }
    open = row === open && from !== 'map' ? null : row;
    if (open) {
      detail(open).hidden = false;
      open.classList.add('open');
      button(open).setAttribute('aria-expanded', 'true');
      if (from === 'map') {
        lengthen();
        if (open.hidden) { search.value = ''; filter(); }
        const inner = scroll.scrollHeight > scroll.clientHeight + 1;
        if (inner) scroll.scrollTop = open.offsetTop - scroll.clientHeight / 5;
      }
    }
    tell('topic-chosen', open ? Number(open.dataset.row) : null);
  };

  const filter = () => {
    lengthen();
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    for (const row of rows) {
      const hit = wanted.every((word) => row.dataset.find.includes(word));
      row.hidden = !hit;
      detail(row).hidden = !hit || row !== open;
      if (hit) found.push(Number(row.dataset.row));
    }
    $('none').hidden = found.length > 0;
    const topics = found.filter((row) => byRow.get(row).dataset.id !== '-1').length;
    $('found').textContent = `${topics.toLocaleString('en')} ${topics === 1 ? 'topic' : 'topics'}`;
    tell('topics-found', wanted.length ? found : null);
  };
  const byRow = new Map(rows.map((row) => [Number(row.dataset.row), row]));

  const compare = {
    id: (a, b) => a.dataset.id - b.dataset.id,
    size: (a, b) => a.dataset.size - b.dataset.size,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
  };
  const heads = [...document.querySelectorAll('.topics th[aria-sort]')];
  for (const head of heads) {
    head.querySelector('button').addEventListener('click', (event) => {
      const key = event.currentTarget.dataset.sort, now = head.getAttribute('aria-sort');
      const down = now === 'none' ? key === 'size' : now === 'ascending';
      for (const other of heads) other.setAttribute('aria-sort', 'none');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const outlast = (row) => row.dataset.id === '-1';
      rows.sort((a, b) => outlast(a) - outlast(b) || (down ? -1 : 1) * compare[key](a, b) || a.dataset.row - b.dataset.row);
      body.append(...rows.flatMap((row) => [row, detail(row)]));
    });
  }

  body.addEventListener('click', (event) => {
    const row = event.target.closest('tr.topic');
    if (row && !String(getSelection())) choose(row, 'table');
  });
  body.addEventListener('keydown', (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = event.target.closest('tr.topic');
    if (!step || !row) return;
    const shown = rows.filter((other) => !other.hidden);
    const next = shown[shown.indexOf(row) + step];
    if (next) { event.preventDefault(); button(next).focus(); }
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && open && event.target !== search) choose(open, 'table');
  });
  search.addEventListener('input', filter);
  document.addEventListener('map-chose', (event) => {
    const row = event.detail === null ? open : byRow.get(event.detail);
    if (row) choose(row, event.detail === null ? 'table' : 'map');
  });

  for (const more of document.querySelectorAll('button[data-more]')) {
    more.addEventListener('click', () => {
      for (const row of $(more.dataset.more).querySelectorAll('tr.more')) row.hidden = false;
      more.remove();
    });
  }
  $('theme').addEventListener('click', () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
    tell('theme-changed');
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => tell('theme-changed'));
})();
