"""The pipeline with the settings of one cluster: a volume for the runs, a card for the tasks that train."""


def on_one_card():
    """Return the pipeline for pods with one GPU each, which start again three times."""
    from preferent.kubeflow import PodSettings
    from preferent.kubeflow.rlhf_pipelines import rlhf

    return rlhf(PodSettings(volume="preferent-runs", memory="64G", accelerators=1, retries=3))
