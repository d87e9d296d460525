"""Every environment variable that vlmflow reads: its meaning and its default. `make docs` writes the reference."""

from typing import NamedTuple


class Variable(NamedTuple):
    """An environment variable."""

    meaning: str
    default: str  # in words; "" if the variable has none


VARIABLES = {
    "VLMFLOW_HOME": Variable("Folder of the runs and of the local MLflow store.", "`runs`"),
    "VLMFLOW_TRACKING": Variable("`off` disables tracking with MLflow.", "`on`"),
    "VLMFLOW_MLFLOW_WAIT": Variable("Seconds to wait for an MLflow server that does not answer.", "3"),
    "VLMFLOW_CHECKPOINTS": Variable(
        "Folder of the checkpoints of running trainings; on several nodes a volume that all of them mount.",
        "`checkpoints` on the volume VLMFLOW_SHARED, or else `.checkpoints` in VLMFLOW_HOME",
    ),
    "VLMFLOW_SHARED": Variable(
        "Mount path of the volume that a step and the pods of its TrainJob or RayJob share; required for such jobs.", ""
    ),
    "VLMFLOW_NAMESPACE": Variable(
        "Kubernetes namespace of jobs and endpoints.", "the pod's own namespace for jobs, `default` for endpoints"
    ),
    "VLMFLOW_PATIENCE": Variable("Seconds until all pods of a job must run.", "600"),
    "VLMFLOW_REGISTRY": Variable("Container registry of our images.", "`localhost`"),
    "VLMFLOW_STEP_IMAGE": Variable("Full name of the image `step`, best with its digest.", "by registry and revision"),
    "VLMFLOW_TRAIN_IMAGE": Variable("Full name of the image `train`.", "by registry and revision"),
    "VLMFLOW_SERVE_IMAGE": Variable("Full name of the image `serve`.", "by registry and revision"),
    "VLMFLOW_IMAGE": Variable("In a pod: the image it runs, for the cards of its artifacts. Set by the pipeline.", ""),
    "VLMFLOW_REVISION": Variable("Revision of the code in an image. Set by the image's build.", "from git"),
    "VLMFLOW_KFP_TOKEN": Variable("Bearer token for Kubeflow Pipelines.", "the pod's own token, in a pod"),
    "VLMFLOW_WEBHOOK": Variable("URL that receives the final status of a pipeline, as JSON by POST.", "no message"),
    "VLMFLOW_RUN": Variable("Folder of the current run on this machine. Set by `vlmflow run`.", ""),
    "VLMFLOW_PREFORK": Variable(
        "Address of the process that starts the steps of a run. `vlmflow run` starts one if it is unset.", ""
    ),
    "VLMFLOW_KFP_RUN": Variable(
        "ID of the current run of Kubeflow Pipelines, from the pod's label. Set by the pipeline.", ""
    ),
    "MLFLOW_TRACKING_URI": Variable("MLflow server or store.", "SQLite in VLMFLOW_HOME"),
    "MLFLOW_RUN_ID": Variable(
        "MLflow run of a step's pod. Set by the MLflow plugin of Kubeflow Pipelines.", "the step creates one"
    ),
    "MLFLOW_ARTIFACTS_DESTINATION": Variable(
        "Storage behind the MLflow server, from which KServe fetches models (`deploy.storage`).", ""
    ),
    "KF_PIPELINES_ENDPOINT": Variable(
        "Address of Kubeflow Pipelines for `vlmflow submit`.", "the cluster's own server, in a pod"
    ),
    "KF_PIPELINES_UI_ENDPOINT": Variable("Address of Kubeflow's UI, for links.", "KF_PIPELINES_ENDPOINT"),
    "KF_PIPELINES_SA_TOKEN_PATH": Variable("File of the pod's token for Kubeflow Pipelines.", "the mounted token"),
    "RAY_ADDRESS": Variable("Address of the Ray cluster, if `curate.ray` is null.", "a local Ray"),
    "KUBECONFIG": Variable("Configuration of the Kubernetes cluster.", "the pod's own cluster, in a pod"),
    "DOCKER_HOST": Variable("Socket of the container engine for `vlmflow run --containers`.", "the engine's default"),
    "OMP_NUM_THREADS": Variable("Threads of each process.", "1"),
}
