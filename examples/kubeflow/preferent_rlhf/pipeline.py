"""RLHF with preferent, in the folder shape of kubeflow/pipelines-components: reward model, PPO, verdict, report."""

import os


def preferent_rlhf():
    """Return the pipeline, whose pods run the image in the environment variable PREFERENT_IMAGE."""
    from preferent.kubeflow import PodSettings
    from preferent.kubeflow.rlhf_pipelines import rlhf

    return rlhf(PodSettings(volume=os.environ.get("PREFERENT_VOLUME", "")))


if __name__ == "__main__":
    from kfp import compiler

    compiler.Compiler().compile(preferent_rlhf(), package_path=__file__.replace(".py", ".yaml"))
