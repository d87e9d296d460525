"""Create or upgrade the tables of MLflow's database, before the server starts in the same pod.

An advisory lock, which ends with the connection, lets only one replica at a time do so. With the component basic-auth,
also write MLflow's configuration of it, and create its tables and its administrator.
"""

import configparser
import os
from pathlib import Path

import sqlalchemy
from mlflow.db import commands

uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
connection = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT").connect()
connection.execute(sqlalchemy.text("select pg_advisory_lock(hashtext('mlflow'))"))
commands.main(["upgrade", uri], standalone_mode=False)

if path := os.environ.get("MLFLOW_AUTH_CONFIG_PATH"):
    config = configparser.RawConfigParser()
    # A user may read everything and change what they have created. configparser reads %% as %.
    config["mlflow"] = {"default_permission": "READ", "database_uri": uri.replace("%", "%%")}
    with Path(path).open("w") as file:
        config.write(file)
    from mlflow.server.auth import bootstrap_admin_user  # it reads the file when it is imported

    bootstrap_admin_user()
