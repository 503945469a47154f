"""The README.md of an exported model: what it was made from, how, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping


def model_card(
    title: str, base: str, method: str, counters: Mapping[str, int], measured: Mapping[str, Mapping[str, float]]
) -> str:
    """Markdown with the front matter of the Hugging Face hub.

    Args:
        title: the model's name.
        base: the folder or hub name of the model that the run began with.
        method: the module's class.
        counters: {counter: value} of the run at the checkpoint.
        measured: {benchmark: its numbers} of the validation of this checkpoint; empty where there was none.
    """
    from huggingface_hub import ModelCardData

    head = ModelCardData(base_model=base, library_name="transformers", pipeline_tag="text-generation", tags=["fulgurite"])
    lines = [
        f"# {title}",
        f"`{base}`, trained with [`{method}`](fulgurite.yaml) of Fulgurite; `fulgurite.yaml` holds every setting of the run.",
        "| | |\n|---|---|\n" + "\n".join(f"| {name.replace('_', ' ')} | {value:,} |" for name, value in counters.items()),
    ]
    if measured:
        rows = [
            f"| {name} | {row['accuracy']:.1%} | {row['low']:.1%} to {row['high']:.1%} | {row['prompts']:,.0f} |"
            for name, row in measured.items()
        ]
        lines.append("| benchmark | accuracy | 95% interval | prompts |\n|---|---|---|---|\n" + "\n".join(rows))
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"
