#!/usr/bin/env bash
# Create a cluster on this machine with everything that vlmflow needs: `make cluster`, `make cluster-down`.
#
#   infra/cluster.sh up      install kind, the components of versions.env and the overlay `local`; safe to run again
#   infra/cluster.sh down    delete the cluster and everything in it
#
# Build the images first: make images TARGETS="step serve". Set KSERVE_MODE=knative for endpoints that scale to zero.
set -euo pipefail
cd "$(dirname "$0")/.."
source infra/versions.env

CLUSTER=vlmflow # overlays/local/volumes.yaml contains the name of its node
KSERVE_MODE=${KSERVE_MODE:-standard}
WAIT=${WAIT:-15m}
GITHUB=https://github.com

up() {
  require_tools docker git kind kubectl openssl
  kind_cluster
  load_images
  cert_manager
  pipelines
  if [ "$KSERVE_MODE" = knative ]; then knative; fi
  kserve
  trainer
  ray
  vlmflow
  echo "ready: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80    # http://localhost:8080"
  echo "       kubectl port-forward -n vlmflow svc/mlflow 5000:5000          # http://localhost:5000"
}

down() {
  require_tools kind
  kind delete cluster --name "$CLUSTER"
}

kind_cluster() {
  kind version | grep -q " $KIND_VERSION " || echo "warning: $(kind version) is installed, but $KIND_NODE is for kind $KIND_VERSION" >&2
  kind get clusters | grep -qx "$CLUSTER" || kind create cluster --name "$CLUSTER" --image "$KIND_NODE" --wait "$WAIT"
  kubectl config use-context "kind-$CLUSTER"
  docker exec "$CLUSTER-control-plane" install -d -m 1777 /var/local/vlmflow
}

load_images() {
  for target in step serve; do
    kind load docker-image "$(.venv/bin/python -m vlmflow.runtime.container_image image $target)" --name "$CLUSTER"
  done
}

cert_manager() {
  apply -f "$GITHUB/cert-manager/cert-manager/releases/download/$CERT_MANAGER_VERSION/cert-manager.yaml"
  wait_for_deployments cert-manager
}

pipelines() {
  apply -k "github.com/kubeflow/pipelines/manifests/kustomize/cluster-scoped-resources?ref=$KFP_VERSION"
  wait_for_crds applications.app.k8s.io workflows.argoproj.io
  apply -k "github.com/kubeflow/pipelines/manifests/kustomize/env/platform-agnostic?ref=$KFP_VERSION"
  wait_for_deployments kubeflow
}

knative() {
  apply -f "$GITHUB/knative/serving/releases/download/$KNATIVE_VERSION/serving-crds.yaml"
  apply -f "$GITHUB/knative/serving/releases/download/$KNATIVE_VERSION/serving-core.yaml"
  apply -f "$GITHUB/knative-extensions/net-kourier/releases/download/$KOURIER_VERSION/kourier.yaml"
  wait_for_deployments knative-serving
  wait_for_deployments kourier-system
}

# The file contains custom resource definitions and objects of these kinds, so the first apply on a new cluster fails.
kserve() {
  local released="$GITHUB/kserve/kserve/releases/download/$KSERVE_VERSION/kserve.yaml"
  apply -f "$released" || wait_for_crds clusterstoragecontainers.serving.kserve.io
  apply -f "$released"
  wait_for_deployments kserve kserve-controller-manager
}

trainer() {
  apply -k "$GITHUB/kubeflow/trainer.git/manifests/overlays/manager?ref=$TRAINER_VERSION"
  wait_for_crds trainjobs.trainer.kubeflow.org trainingruntimes.trainer.kubeflow.org
  wait_for_deployments kubeflow-system
}

ray() {
  kubectl create namespace ray-system --dry-run=client -o yaml | apply -f -
  apply -n ray-system -k "github.com/ray-project/kuberay/ray-operator/config/default?ref=$KUBERAY_VERSION"
  wait_for_crds rayclusters.ray.io rayjobs.ray.io
  wait_for_deployments ray-system
}

vlmflow() {
  apply -f infra/namespace/namespace.yaml
  secrets
  kubectl kustomize infra/overlays/local | sed "s/:REVISION$/:$(.venv/bin/python -m vlmflow.runtime.container_image revision)/" | apply -f -
  if [ "$KSERVE_MODE" = knative ]; then apply -k infra/kserve/knative; fi
  kubectl rollout restart deployment/kserve-controller-manager -n kserve # it reads its settings only at startup
  kubectl rollout restart deployment/ml-pipeline -n kubeflow
  for workload in statefulset/postgres statefulset/s3 deployment/mlflow; do
    kubectl rollout status "$workload" -n vlmflow --timeout "$WAIT"
  done
  wait_for_deployments kserve kserve-controller-manager
  wait_for_deployments kubeflow ml-pipeline
}

# Create random secrets once. They exist only in the cluster.
secrets() {
  if kubectl get secret mlflow-s3 -n vlmflow > /dev/null 2>&1; then return; fi
  local password accesskey secretkey
  password=$(openssl rand -hex 16) accesskey=$(openssl rand -hex 10) secretkey=$(openssl rand -hex 20)
  kubectl create secret generic mlflow-database -n vlmflow --from-literal=password="$password" \
    --from-literal=uri="postgresql+psycopg2://mlflow:$password@postgres.vlmflow.svc.cluster.local:5432/mlflow"
  for secret in "kubeflow vlmflow-s3" "vlmflow serving-s3" "vlmflow mlflow-s3"; do
    kubectl create secret generic "${secret#* }" -n "${secret% *}" \
      --from-literal=accesskey="$accesskey" --from-literal=secretkey="$secretkey"
  done
}

# Server-side, because KServe's definitions are too long for a client-side apply. With --force-conflicts, because our
# settings are keys of ConfigMaps that KFP and KServe own.
apply() {
  kubectl apply --server-side --force-conflicts "$@"
}

wait_for_crds() {
  kubectl wait --for=condition=established --timeout "$WAIT" "${@/#/crd/}"
}

# wait_for_deployments NAMESPACE [DEPLOYMENT]: wait for one deployment, or for all in the namespace.
wait_for_deployments() {
  kubectl get deployment ${2:-} -n "$1" -o name | xargs -n 1 kubectl rollout status -n "$1" --timeout "$WAIT"
}

require_tools() {
  for tool in "$@"; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed; infra/README.md lists the required tools" >&2; exit 2; }
  done
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  *) echo "usage: infra/cluster.sh up | down" >&2; exit 2 ;;
esac
