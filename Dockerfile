# The image of a component: preferent with kfp, on the CPU. For a GPU start from an image with CUDA and torch.
# Build it where the source is, and push it to a registry that your cluster can read:
#     docker build -t REGISTRY/preferent:0.2.0 . && docker push REGISTRY/preferent:0.2.0
FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/tmp/huggingface
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md constraints-kubeflow.txt LICENSE ./
COPY preferent ./preferent
RUN python -m pip install --constraint constraints-kubeflow.txt --extra-index-url https://download.pytorch.org/whl/cpu '.[kubeflow]'

RUN useradd --create-home --uid 10001 preferent
USER 10001
WORKDIR /runs
ENTRYPOINT ["preferent"]
