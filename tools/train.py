import os
import shutil
from pathlib import Path

# Before torch is loaded: its threads shall sleep, not spin, while they wait for one another. Beside the loader's
# threads and other processes on the same cores that is 44 sets/s where spinning had 13.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click

from tools.cli import Command, progress_bar
from train.config import BUDGETS, COMPILE, DEVICES, RESIDENT, Config
from train.distributed import Distributed
from train.losses import RECIPES
from train.networks import NETWORKS
from train.optim import SCHEDULES
from train.precision import PRECISIONS
from train.report import write_report
from train.signals import Interrupted
from train.trainer import Trainer

BAR, TICKS = 8, 10_000  # characters; steps of the bar, whatever the run's length is counted in
DEFAULT = {name: field.default for name, field in Config.__dataclass_fields__.items()}


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--shards", type=click.Path(path_type=Path), required=True, help="Folder of packed shards.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for this run; new or empty.")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint, with its settings.")
@click.option("--override", is_flag=True, help="With --resume: the settings given here count, not those of the run.")
@click.option("--epochs", type=int, default=DEFAULT["epochs"], help="How often every training set is seen.")
@click.option("--sets", type=int, help="In place of --epochs: how many sets are seen.")
@click.option("--minutes", type=float, help="In place of --epochs: how long to train, with validation in between.")
@click.option("--batch-size", type=int, default=DEFAULT["batch_size"], help="Sets a step.")
@click.option("--size", type=int, default=DEFAULT["size"], help="Height and width in pixels; a multiple of 16.")
@click.option("--lr", type=float, default=DEFAULT["lr"], help="Highest learning rate.")
@click.option("--weight-decay", type=float, default=DEFAULT["weight_decay"], help="AdamW's decay of the weights.")
@click.option("--warmup", type=float, default=DEFAULT["warmup"], help="Share of the run in which the rate rises.")
@click.option("--schedule", type=click.Choice(SCHEDULES), default=DEFAULT["schedule"], help="Of the learning rate.")
@click.option("--clip", type=float, default=DEFAULT["clip"], help="Largest norm of the gradient; 0: any.")
@click.option("--ema", type=float, default=DEFAULT["ema"],
              help="Decay of the average of the weights that is validated and used; 0: no average.")  # fmt: skip
@click.option("--depth/--no-depth", default=DEFAULT["depth"], help="Learn the depth too, or the mask alone.")
@click.option("--model", default=DEFAULT["model"],
              help=f"The network: {', '.join(NETWORKS)}, or unet-W of W channels, as unet-16.")  # fmt: skip
@click.option("--loss", type=click.Choice(list(RECIPES)), default=DEFAULT["loss"],
              help="bce and bce+ssim are those of the original.")  # fmt: skip
@click.option("--mask-weight", type=float, default=DEFAULT["mask_weight"], help="Of the mask's loss in the sum.")
@click.option("--depth-weight", type=float, default=DEFAULT["depth_weight"], help="Of the depth's loss in the sum.")
@click.option("--device", type=click.Choice(DEVICES), default=DEFAULT["device"], help="auto: the GPU if there is one.")
@click.option("--resident", type=click.Choice(RESIDENT), default=DEFAULT["resident"],
              help="Where decoded sets stay for later epochs; auto: where there is room.")  # fmt: skip
@click.option("--augment/--no-augment", default=DEFAULT["augment"],
              help="Mirror, crop, shift, and change brightness, contrast and noise.")  # fmt: skip
@click.option("--peer-protocol/--no-peer-protocol", default=DEFAULT["peer_protocol"],
              help="LEAKING: train on a random split by set, as published numbers do.")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default=DEFAULT["precision"],
              help="auto: on a GPU bf16, or fp16 if it has no bf16; float32 on a CPU. bf16 is faster on CPUs with AMX, "
              "too.")  # fmt: skip
@click.option("--deterministic/--no-deterministic", default=DEFAULT["deterministic"],
              help="The same bits in every run on a GPU, too, where they cost speed; on a CPU they are.")  # fmt: skip
@click.option("--compile", type=click.Choice(COMPILE), default=DEFAULT["compile"],
              help="Mode of torch.compile; auto: default on a GPU with a C compiler beside it, else off.")  # fmt: skip
@click.option("--hw-decoder-load", type=float, default=DEFAULT["hw_decoder_load"], show_default="the loader's",
              help="Share of the JPEGs that a GPU's hardware engine decodes, 0 to 1.")  # fmt: skip
@click.option("--window", type=int, default=DEFAULT["window"], show_default="all",
              help="Shards that are shuffled among each other, where random reads are dear.")  # fmt: skip
@click.option("--seed", type=int, default=DEFAULT["seed"], help="For first weights, order of the sets, augmentation.")
@click.option("--log-every", type=int, default=DEFAULT["log_every"], help="Steps between two lines of metrics.")
@click.option("--checkpoint-every", type=int, default=DEFAULT["checkpoint_every"], help="Steps between checkpoints.")
@click.option("--max-bad-share", type=float, default=DEFAULT["max_bad_share"],
              help="Share of damaged training sets that is left out before the run stops.")  # fmt: skip
@click.option("--report/--no-report", default=True, help="At the end, score validation sets and write OUT/report.html.")
@click.pass_context
def main(ctx: click.Context, /, resume: bool, override: bool, report: bool, **settings: object) -> None:
    """Train a network that tells mask and depth from a background and an overlay.

    The losses, the validation scores and the loader's stalls go to OUT/metrics.jsonl and OUT/tensorboard,
    pictures and curves beside them after each epoch, and at the end all that there is to see to OUT/report.html, which
    any browser opens. On several GPUs: torchrun --nproc-per-node GPUS -m tools.train, with the same options.
    """
    given = {name for name in settings if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT}
    if given & set(BUDGETS):
        settings |= {name: None for name in BUDGETS if name not in given}
        given |= set(BUDGETS)
    config = Config(**settings)  # type: ignore[arg-type]
    with Distributed.from_environment(config.device) as ranks:
        trainer = Trainer(config, resume=resume, given=given, override=override, ranks=ranks, say=click.echo)
        try:
            fit(trainer)
        except Interrupted as stop:
            if ranks.first:
                click.echo(stop, err=True)
            ctx.exit(stop.exit_code)
        finally:
            trainer.close()
        if ranks.first:
            click.echo("\n".join(trainer.summary()))
            if report:
                click.echo(f"report: {write_report(config.out, config.shards, trainer.device)}")


def fit(trainer: Trainer) -> None:
    """Train behind a progress bar."""
    # A line longer than the terminal would scroll: a short bar, and of the status what fits beside it.
    room = shutil.get_terminal_size().columns - len(f"training  [{'#' * BAR}]  100%  00:00:00  ") - 1
    hidden = not trainer.ranks.first
    with progress_bar(
        "training", TICKS, lambda text: text and text[:room], width=BAR, percent=True, hidden=hidden
    ) as bar:
        trainer.say = lambda line: click.echo(line if bar.hidden else f"\r\033[2K{line}")  # over the bar
        bar.update(int(trainer.progress * TICKS))
        trainer.fit(lambda status: bar.update(int(trainer.progress * TICKS) - bar.pos, status))


if __name__ == "__main__":
    main()
