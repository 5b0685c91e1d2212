"""`python kill_at.py MOMENT ARGUMENTS`: run `recall ARGUMENTS`, and die by SIGKILL at that moment."""

import os
import signal
import sys


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(moment):
    if moment == "training":
        from recall import finetuning

        original = finetuning._Watch.on_save

        def on_save(*arguments, **named):
            original(*arguments, **named)
            die()

        finetuning._Watch.on_save = on_save
    elif moment == "writing a checkpoint":
        from recall import finetuning

        finetuning._files = die
    elif moment == "register":
        import mlflow

        mlflow.register_model = die
    elif moment == "alias":
        import mlflow

        mlflow.MlflowClient.set_registered_model_alias = die
    else:
        from tasks import stage

        seal = stage.seal
        stage.seal = lambda out, manifest: die() if manifest["stage"] == moment else seal(out, manifest)


if __name__ == "__main__":
    from pathlib import Path

    from flows.environment import set_defaults

    set_defaults(Path(".store"))
    arrange(sys.argv.pop(1))
    from flows.cli import main

    main()
