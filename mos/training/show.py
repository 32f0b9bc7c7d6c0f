"""Draw a trained concept at LoRA scale 0, 0.7 and 1, and say what its words alone have learnt.

`python -m mos.training.show CONCEPT.safetensors --out grid.png [--base PATH] [--pictures DIR]`. With the
pictures it was trained on, the words' share of the gain is measured as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mos.artifact import read_artifact
from mos.base_model import load_base
from mos.training.data import load_concept_data
from mos.training.grids import scale_grid
from mos.training.judging import embedding_share


def main() -> None:
    """Write the grid and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("concept", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the grid, a PNG")
    parser.add_argument("--base", default=None, help="diffusers folder; default the small world")
    parser.add_argument("--pictures", type=Path, help="the folder it was trained on")
    options = parser.parse_args()
    base = load_base(options.base)
    edlora = read_artifact(options.concept, base.facts)
    scale_grid(base, edlora).save(options.out, format="PNG")
    print(f"wrote {options.out}")
    if options.pictures is None:
        return
    card = edlora.card
    name = card.words[0].strip("<>").removesuffix("-rand")
    data = load_concept_data(
        options.pictures, name=name, class_word=card.class_word, kind=card.kind, resolution=base.facts.resolution
    )
    share = embedding_share(base, data, edlora)
    print(f"loss with the class word {share.plain:.4f}, words alone {share.embedding:.4f}, with LoRA {share.full:.4f}")
    print(f"the words alone carry {share.share:.0%} of the gain{'; ' + share.warning if share.warning else ''}")


if __name__ == "__main__":
    main()
