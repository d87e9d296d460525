#!/usr/bin/env bash
# Create a cluster on this machine with everything that vlmflow needs: `make cluster`, `make cluster-down`.
#
#   infra/cluster.sh up      build the images; install the components of versions.env and the overlay `local`
#   infra/cluster.sh down    delete the cluster and everything in it
#
# `up` may be run again: it updates what differs. Set KSERVE_MODE=knative for endpoints that scale to zero.
set -euo pipefail
cd "$(dirname "$0")/.."
source infra/versions.env

# The pods of this cluster request about 3 CPUs and 6 GiB, of which Kubernetes, KFP and the operators take the most; a
# training step requests 2 CPUs and 8 GiB, an endpoint 1 CPU and 4 GiB.
CPUS=8 MEMORY_GIB=15
CLUSTER=vlmflow # overlays/local/volumes.yaml contains the name of its node
KSERVE_MODE=${KSERVE_MODE:-standard}
WAIT=${WAIT:-15m}
RETRY_SECONDS=${RETRY_SECONDS:-900}
RETRY_PAUSE=${RETRY_PAUSE:-5}
GITHUB=https://github.com
CLONE=timeout=10m # kustomize's default for a git clone, 27 s, is too short for these repositories

# The overlay `local` names the images localhost/vlmflow-…:REVISION.
unset VLMFLOW_REGISTRY VLMFLOW_STEP_IMAGE VLMFLOW_TRAIN_IMAGE VLMFLOW_SERVE_IMAGE

up() {
  require_tools docker git kind kubectl make openssl
  check_machine
  make images TARGETS="step serve"
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

check_machine() {
  local cpus memory
  read -r cpus memory < <(docker info --format '{{.NCPU}} {{.MemTotal}}')
  if [ "$cpus" -lt "$CPUS" ] || [ "$((memory >> 30))" -lt "$MEMORY_GIB" ]; then
    echo "warning: docker has $cpus CPUs and $((memory >> 30)) GiB;" \
      "with less than $CPUS CPUs and $MEMORY_GIB GiB some pods wait for ever" >&2
  fi
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

# The node has no GPU, so the image `step`, whose torch is for CPUs, also gets the name of the image `train`.
load_images() {
  kind load docker-image "$(image step)" --name "$CLUSTER"
  kind load docker-image "$(image serve)" --name "$CLUSTER"
  docker exec "$CLUSTER-control-plane" ctr --namespace k8s.io images tag --force "$(image step)" "$(image train)"
}

image() {
  .venv/bin/python -m vlmflow.runtime.container_image image "$1"
}

# cert-manager refuses certificates until the API server trusts its webhook, some time after its pods are ready.
cert_manager() {
  apply -f "$GITHUB/cert-manager/cert-manager/releases/download/$CERT_MANAGER_VERSION/cert-manager.yaml"
  wait_for_crds issuers.cert-manager.io
  wait_for_deployments cert-manager
  retry create_test_issuer
}

create_test_issuer() {
  kubectl create --dry-run=server -f - << END
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: test, namespace: default}
spec: {selfSigned: {}}
END
}

pipelines() {
  apply -k "$GITHUB/kubeflow/pipelines.git/manifests/kustomize/cluster-scoped-resources?ref=$KFP_VERSION&$CLONE"
  wait_for_crds workflows.argoproj.io
  retry apply -k "$GITHUB/kubeflow/pipelines.git/manifests/kustomize/env/platform-agnostic?ref=$KFP_VERSION&$CLONE"
  wait_for_deployments kubeflow
}

knative() {
  local released="$GITHUB/knative/serving/releases/download/$KNATIVE_VERSION"
  apply -f "$released/serving-crds.yaml"
  wait_for_crds services.serving.knative.dev images.caching.internal.knative.dev certificates.networking.internal.knative.dev
  apply -f "$released/serving-core.yaml"
  apply -f "$GITHUB/knative-extensions/net-kourier/releases/download/$KOURIER_VERSION/kourier.yaml"
  wait_for_deployments knative-serving
  wait_for_deployments kourier-system
}

# kserve.yaml contains definitions and objects of these kinds, but not its namespace. The runtimes, such as that of
# `deploy.runtime: huggingface`, are in a second file, which the webhooks of both controllers validate.
kserve() {
  local released="$GITHUB/kserve/kserve/releases/download/$KSERVE_VERSION"
  create_namespace kserve
  retry apply -f "$released/kserve.yaml"
  wait_for_deployments kserve kserve-controller-manager
  wait_for_deployments kserve llmisvc-controller-manager
  retry apply -f "$released/kserve-cluster-resources.yaml"
}

trainer() {
  apply -k "$GITHUB/kubeflow/trainer.git/manifests/overlays/manager?ref=$TRAINER_VERSION&$CLONE"
  wait_for_crds trainjobs.trainer.kubeflow.org trainingruntimes.trainer.kubeflow.org
  wait_for_deployments kubeflow-system
}

# KubeRay's kustomization sets the namespace `default`; ours around it sets another one, also in its role bindings.
ray() {
  local folder
  folder=$(mktemp -d)
  cat > "$folder/kustomization.yaml" << END
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: ["$GITHUB/ray-project/kuberay.git/ray-operator/config/default?ref=$KUBERAY_VERSION&$CLONE"]
transformers:
  - |-
    apiVersion: builtin
    kind: NamespaceTransformer
    metadata: {name: ray-system, namespace: ray-system}
    setRoleBindingSubjects: allServiceAccounts
END
  create_namespace ray-system
  apply -k "$folder"
  rm -r "$folder"
  wait_for_crds rayclusters.ray.io rayjobs.ray.io
  wait_for_deployments ray-system
}

vlmflow() {
  apply_as vlmflow -f infra/namespace/namespace.yaml
  secrets
  retry overlay
  if [ "$KSERVE_MODE" = knative ]; then retry apply_as vlmflow-knative -k infra/kserve/knative; fi
  kubectl rollout restart deployment/kserve-controller-manager -n kserve # it reads its settings only at startup
  kubectl rollout restart deployment/ml-pipeline -n kubeflow
  for workload in statefulset/postgres statefulset/s3 deployment/mlflow; do
    kubectl rollout status "$workload" -n vlmflow --timeout "$WAIT"
  done
  wait_for_deployments kserve kserve-controller-manager
  wait_for_deployments kubeflow ml-pipeline
}

overlay() {
  local revision
  revision=$(.venv/bin/python -m vlmflow.runtime.container_image revision)
  kubectl kustomize infra/overlays/local | sed "s/:REVISION$/:$revision/" | apply_as vlmflow -f -
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

# Server-side, because KServe's definitions are too long for a client-side apply.
apply() {
  kubectl apply --server-side --force-conflicts "$@"
}

# apply_as MANAGER ...: apply our manifests under a field manager of their own. An apply deletes every field that its
# manager owned and no longer sends: with one manager, our three keys of a ConfigMap would delete KFP's own.
apply_as() {
  apply --field-manager "$@"
}

create_namespace() {
  kubectl create namespace "$1" --dry-run=client -o yaml | apply -f -
}

# Repeat a command that fails until a webhook or a definition is ready.
retry() {
  local end=$((SECONDS + RETRY_SECONDS))
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || { echo "gave up after $RETRY_SECONDS s: $*" >&2; return 1; }
    sleep "$RETRY_PAUSE"
  done
}

wait_for_crds() {
  retry kubectl wait --for=condition=established --timeout 60s "${@/#/crd/}"
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
