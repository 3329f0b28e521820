"""What the tests change in the reference run file: sizes of the machine's kind, never the recipe."""

from __future__ import annotations

from janus_plugins.core.runfile import load_run

NO_DOWNLOADS = (
    "model.language_model.tokenizer={type: bytes}",
    "model.understanding.image.encoder.weights=null",
)

TWO_LAYERS = (
    "model.language_model.options.num_layers=2",
    # The bytes tokenizer has 270 entries: 102,000 rows more, twice, and their moments, are 7 GiB that tell nothing.
    "model.language_model.options.vocab_size=512",
    # Forked workers would double the memory: their copy of the weights stays while the weights move on.
    "engine.workers=0",
    # Of 500 million values by default: made for many GPUs.
    "engine.deepspeed.zero_optimization.reduce_bucket_size=50000000",
    "engine.deepspeed.zero_optimization.allgather_bucket_size=50000000",
)


def steps(adapters: int, unified: int, finetune: int, number: int = 2) -> tuple[str, ...]:
    """Cut every stage to `number` steps of so many samples, without warm-up.

    ImageNet makes way for the other sets in the middle of stage II, as after 120,000 of 180,000 steps.
    """
    sources = load_run("janus_1.3b").stages[1].sources or {}
    later = [name for name, window in sources.items() if window.after]
    batches = {"adapters": adapters, "unified": unified, "finetune": finetune}
    return (
        *(f"stages.{name}.batch={batch}" for name, batch in batches.items()),
        *(f"stages.{name}.steps={number}" for name in batches),
        *(f"stages.{name}.schedule.warmup=1" for name in batches),
        f"stages.unified.sources.imagenet.until={number // 2}",
        *(f"stages.unified.sources.{name}.after={number // 2}" for name in later),
        "engine.log_every=1",
    )
