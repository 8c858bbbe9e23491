"""The pipelines as they are imported, with the settings of pods that need no cluster."""

from preferent.kubeflow.autosxs_pipelines import autosxs
from preferent.kubeflow.infer_pipelines import infer
from preferent.kubeflow.pods import PodSettings
from preferent.kubeflow.rlaif_pipelines import rlaif
from preferent.kubeflow.rlhf_pipelines import rlhf
from preferent.kubeflow.tuning_graphs import reinforcement, reward

rlhf_pipeline = rlhf(PodSettings())
infer_pipeline = infer(PodSettings())
rlaif_pipeline = rlaif(PodSettings())
autosxs_pipeline = autosxs(PodSettings())
reward_model_graph = reward(PodSettings())
reinforcement_learning_graph = reinforcement(PodSettings())
