#!/usr/bin/env bash
# A cluster on this machine, and all of vlmflow in it: `make cluster`, `make cluster-down`.
#
#   infra/cluster.sh up      kind, the components of versions.env, our overlay `local`; a second time it mends what differs
#   infra/cluster.sh down    delete it, with all that is in it
#
# The images must be there: make images TARGETS="step serve". KSERVE_MODE=knative lets idle endpoints sleep.
set -euo pipefail
cd "$(dirname "$0")/.."
source infra/versions.env

CLUSTER=vlmflow # its node is named so in overlays/local/volumes.yaml
KSERVE_MODE=${KSERVE_MODE:-standard}
WAIT=${WAIT:-15m}
GITHUB=https://github.com

up() {
  require docker git kind kubectl openssl
  kind_cluster
  images
  cert_manager
  pipelines
  if [ "$KSERVE_MODE" = knative ]; then knative; fi
  kserve
  trainer
  ray
  ours
  echo "ready: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80    # http://localhost:8080"
  echo "       kubectl port-forward -n vlmflow svc/mlflow 5000:5000          # http://localhost:5000"
}

down() {
  require kind
  kind delete cluster --name "$CLUSTER"
}

kind_cluster() {
  kind version | grep -q " $KIND_VERSION " || echo "warning: $(kind version); $KIND_NODE belongs to kind $KIND_VERSION" >&2
  kind get clusters | grep -qx "$CLUSTER" || kind create cluster --name "$CLUSTER" --image "$KIND_NODE" --wait "$WAIT"
  kubectl config use-context "kind-$CLUSTER"
  docker exec "$CLUSTER-control-plane" install -d -m 1777 /var/local/vlmflow
}

images() {
  for target in step serve; do
    kind load docker-image "$(.venv/bin/python -m vlmflow.runtime.step image $target)" --name "$CLUSTER"
  done
}

cert_manager() {
  apply -f "$GITHUB/cert-manager/cert-manager/releases/download/$CERT_MANAGER_VERSION/cert-manager.yaml"
  ready cert-manager
}

pipelines() {
  apply -k "github.com/kubeflow/pipelines/manifests/kustomize/cluster-scoped-resources?ref=$KFP_VERSION"
  established applications.app.k8s.io workflows.argoproj.io
  apply -k "github.com/kubeflow/pipelines/manifests/kustomize/env/platform-agnostic?ref=$KFP_VERSION"
  ready kubeflow
}

knative() {
  apply -f "$GITHUB/knative/serving/releases/download/$KNATIVE_VERSION/serving-crds.yaml"
  apply -f "$GITHUB/knative/serving/releases/download/$KNATIVE_VERSION/serving-core.yaml"
  apply -f "$GITHUB/knative-extensions/net-kourier/releases/download/$KOURIER_VERSION/kourier.yaml"
  ready knative-serving
  ready kourier-system
}

# Kinds and objects of these kinds lie in one file: on a new cluster the objects come too early the first time.
kserve() {
  local released="$GITHUB/kserve/kserve/releases/download/$KSERVE_VERSION/kserve.yaml"
  apply -f "$released" || established clusterstoragecontainers.serving.kserve.io
  apply -f "$released"
  ready kserve kserve-controller-manager
}

trainer() {
  apply -k "$GITHUB/kubeflow/trainer.git/manifests/overlays/manager?ref=$TRAINER_VERSION"
  established trainjobs.trainer.kubeflow.org trainingruntimes.trainer.kubeflow.org
  ready kubeflow-system
}

ray() {
  kubectl create namespace ray-system --dry-run=client -o yaml | apply -f -
  apply -n ray-system -k "github.com/ray-project/kuberay/ray-operator/config/default?ref=$KUBERAY_VERSION"
  established rayclusters.ray.io rayjobs.ray.io
  ready ray-system
}

ours() {
  apply -f infra/namespace/namespace.yaml
  secrets
  kubectl kustomize infra/overlays/local | sed "s/:REVISION$/:$(.venv/bin/python -m vlmflow.runtime.step revision)/" | apply -f -
  if [ "$KSERVE_MODE" = knative ]; then apply -k infra/kserve/knative; fi
  kubectl rollout restart deployment/kserve-controller-manager -n kserve # it reads its settings when it starts
  kubectl rollout restart deployment/ml-pipeline -n kubeflow
  for thing in statefulset/postgres statefulset/s3 deployment/mlflow; do
    kubectl rollout status "$thing" -n vlmflow --timeout "$WAIT"
  done
  ready kserve kserve-controller-manager
  ready kubeflow ml-pipeline
}

# Made once, at random, and kept in the cluster alone.
secrets() {
  if kubectl get secret mlflow-s3 -n vlmflow > /dev/null 2>&1; then return; fi
  local password accesskey secretkey
  password=$(openssl rand -hex 16) accesskey=$(openssl rand -hex 10) secretkey=$(openssl rand -hex 20)
  kubectl create secret generic mlflow-database -n vlmflow --from-literal=password="$password" \
    --from-literal=uri="postgresql+psycopg2://mlflow:$password@postgres.vlmflow.svc.cluster.local:5432/mlflow"
  for place in "kubeflow vlmflow-s3" "vlmflow serving-s3" "vlmflow mlflow-s3"; do
    kubectl create secret generic "${place#* }" -n "${place% *}" \
      --from-literal=accesskey="$accesskey" --from-literal=secretkey="$secretkey"
  done
}

# Server-side, for KServe's definitions are too long for the client's way; by force, for our settings lie in their maps.
apply() {
  kubectl apply --server-side --force-conflicts "$@"
}

established() {
  kubectl wait --for=condition=established --timeout "$WAIT" "${@/#/crd/}"
}

# Every deployment of a namespace, or the one that is named.
ready() {
  kubectl get deployment ${2:-} -n "$1" -o name | xargs -n 1 kubectl rollout status -n "$1" --timeout "$WAIT"
}

require() {
  for tool in "$@"; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed" >&2; exit 2; }
  done
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  *) echo "usage: infra/cluster.sh up | down" >&2; exit 2 ;;
esac
