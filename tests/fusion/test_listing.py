"""`python -m mmm_fusion`, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

GOOD = """
from mmm_fusion import hookimpl
from mmm_fusion.methods import Add

class Acme(Add):
    \"\"\"Adds the image, by acme.

    Slowly.
    \"\"\"

    name = "acme"

@hookimpl
def mmm_fusion_methods():
    return [Acme]
"""


def listing(path: Path, chosen: str, **environment: str) -> tuple[int, str, str]:
    environment = {"PYTHONPATH": str(path), "MMM_FUSION_PLUGINS": chosen, **environment}
    command = [sys.executable, "-W", "error", "-m", "mmm_fusion"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path)
    return run.returncode, run.stdout, run.stderr


def test_the_loaded_and_the_failed(site) -> None:
    site.install("acme-fusion", "0.2", GOOD)
    site.install("broken-fusion", "0.3", "raise SystemExit(3)")
    own = f"mmm-fusion {version('mmm-fusion')}"
    code, out, err = listing(site.folder, "acme_fusion,broken_fusion")
    assert err == ""
    assert out.splitlines() == [
        "Fusion methods (contract 1)",
        f"  add              {own}, mmm_fusion.methods.add.Add",
        "      Image tokens, projected and pooled to the text's length, added to the text.",
        f"  concat           {own}, mmm_fusion.methods.concat.Concat",
        "      Image tokens, projected, then the text.",
        f"  cross_attention  {own}, mmm_fusion.methods.cross_attention.CrossAttention",
        "      Attention from the text to the image, then a feed-forward layer, each times the tanh of a gate that "
        "starts at 0.",
        f"  gated            {own}, mmm_fusion.methods.gated.Gated",
        "      Each word and the mean image token, mixed channel by channel by a gate that sees both.",
        f"  ldp_v2           {own}, mmm_fusion.methods.ldp_v2.LDPv2",
        "      Image tokens through MobileVLM V2's projector, a quarter as many, then the text.",
        f"  low_rank         {own}, mmm_fusion.methods.low_rank.LowRank",
        "      Sums of products of a linear map of [word; 1] and one of [mean image token; 1].",
        f"  matmul           {own}, mmm_fusion.methods.matmul.Matmul",
        "      The mean of the projected image tokens, each times its similarity to the word, added to the word.",
        f"  mlp              {own}, mmm_fusion.methods.mlp.MLP",
        "      Image tokens through a two-layer perceptron, pooled to the text's length and added to the text.",
        f"  mobilevlm        {own}, mmm_fusion.methods.mobilevlm.MobileVLM",
        "      Image tokens through MobileVLM's projector, a quarter as many, then the text.",
        f"  perceiver        {own}, mmm_fusion.methods.perceiver.Perceiver",
        "      Learned latents that attend to the image and to themselves, then the text.",
        f"  q_former         {own}, mmm_fusion.methods.q_former.QFormer",
        "      Learned queries through a transformer that attends to the image, then a linear layer, then the text.",
        f"  visual_expert    {own}, mmm_fusion.methods.visual_expert.VisualExpert",
        "      A pre-norm transformer layer over [image; text], with one set of weights for each of the two.",
        "  acme             acme-fusion 0.2, acme_fusion.Acme",
        "      Adds the image, by acme.",
        "",
        "Failed to load",
        "  broken-fusion 0.3, entry point 'broken_fusion'",
        "      SystemExit: 3",
    ]
    assert code == 1


def test_strict(site) -> None:
    site.install("broken-fusion", "0.3", "1 / 0")
    assert listing(site.folder, "broken_fusion", MMM_FUSION_STRICT="1") == (
        1,
        "",
        "MMM_FUSION_STRICT is set, and not all plug-ins load. Failed to load: broken-fusion 0.3 (ZeroDivisionError: "
        "division by zero). Repair or uninstall what fails, or leave it out by MMM_FUSION_PLUGINS.\n",
    )


def test_the_example_plugin_where_it_is_installed(tmp_path: Path) -> None:
    code, out, err = listing(tmp_path, "film")
    line = f"  film             mmm-fusion-film {version('mmm-fusion-film')}, mmm_fusion_film.film.Film"
    assert line in out.splitlines()
    assert (code, err) == (0, "")
