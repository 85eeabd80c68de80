#!/usr/bin/env bash
# The Spark operator calls this before it ends the pod. Nothing is to be done: the JVM ends its session on the SIGTERM that follows.
