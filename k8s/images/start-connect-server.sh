#!/usr/bin/env bash
# The Spark operator starts a Spark Connect server by this name. PySpark's package has the server, and not the script.
set -euo pipefail
exec "$SPARK_HOME/bin/spark-submit" --class org.apache.spark.sql.connect.service.SparkConnectServer --name topicscale "$@"
