"""A program: import the packages with their annotations checked at run time, then call one of them.

The packages import jaxtyping under `TYPE_CHECKING` alone, so that is set while they are imported. Run by
`test_shapes.py` in a process of its own, since the hook must come before the first import.
"""

import builtins
import sys
import typing
from collections.abc import Callable

import beartype  # noqa: F401  (what the packages import comes before TYPE_CHECKING is set)
import huggingface_hub.hub_mixin  # noqa: F401
import jaxtyping
import pluggy  # noqa: F401
import torch
import torch._dynamo

builtins.Tensor = torch.Tensor  # torch.library evaluates annotations, and finds jaxtyping's globals
typing.TYPE_CHECKING = True
with jaxtyping.install_import_hook(["mmm_core", "mmm_vit", "mmm_fusion", "mmm_block"], "beartype.beartype"):
    import mmm_block
    import mmm_core
    import mmm_fusion
    import mmm_vit
    from mmm_core.compat import mamba_ssm
typing.TYPE_CHECKING = False
randn = torch.randn


def core() -> Callable[[], object]:
    b, l, e, n, g, k = 2, 5, 4, 3, 2, 4
    u, delta, A, D = randn(b, l, e), randn(b, l, e), -randn(e, n).exp(), randn(e)
    B, C = randn(b, l, n), randn(b, l, n)
    mmm_core.selective_scan(u, delta, A, B, C, D, u, D, delta_softplus=True)
    state = randn(b, e, n)
    mmm_core.selective_scan(u, delta, A, B, C, initial_state=state, return_final_state=True, reverse=True)
    grouped = randn(b, l, g, n)
    mmm_core.selective_scan(u, delta, A, grouped, grouped)
    packed = torch.tensor([0, 2, 2, l])
    rows = [x[:1].requires_grad_() for x in (u, delta, B, C)]
    out, final = mmm_core.selective_scan(
        rows[0], rows[1], A, rows[2], rows[3], cu_seqlens=packed, return_final_state=True
    )
    (out.sum() + final.sum()).backward()
    mmm_core.selective_state_update(state, u[:, 0], delta[:, 0].detach(), A, B[:, 0], C[:, 0], D)
    weight = randn(e, k)
    mmm_core.causal_conv1d(u, weight, D, activation="silu", return_final_state=True)
    mmm_core.causal_conv1d_update(u[:, 0], randn(b, e, k - 1), weight)
    mamba = mmm_core.Mamba(6)
    mamba(randn(b, l, 6)).sum().backward()
    mamba.step(randn(b, 6), mmm_core.MambaState(randn(b, 12, k - 1), randn(b, 12, 16)))
    channel_first()
    return lambda: mmm_core.selective_scan(u, delta, A.unsqueeze(0), B, C)


def channel_first() -> None:
    """The functions of other libraries, with each rank of their arguments."""
    b, l, e, n, g, h, k, r = 2, 5, 4, 3, 2, 3, 4, 1
    u, A, D, weight = randn(b, e, l), -randn(e, n).exp(), randn(e), randn(e, k)
    for B in (randn(e, n), randn(b, n, l), randn(b, g, n, l)):
        mamba_ssm.selective_scan_fn(u, u, A, B, B, D, u, D, return_last_state=True)
    complex_A, B = torch.complex(A, A), randn(b, n, 2 * l)
    mamba_ssm.selective_scan_fn(u, u, complex_A, B, complex_A, return_last_state=True)
    projections = (randn(r + 2 * n, e), randn(e, r), randn(6, e), randn(6))
    mamba_ssm.mamba_inner_fn(randn(b, 2 * e, l), weight[:, None], D, *projections, A, None, None, D, D)
    rows, slots = (randn(b, n), randn(b, n)), torch.tensor([4, -1])
    mamba_ssm.selective_state_update(randn(b, e, n), u[..., 0], u[..., 0], A, *rows, D, dt_bias=D)
    x, D = randn(b, h, e), randn(h, e)
    mamba_ssm.selective_state_update(randn(5, h, e, n), x, x, randn(h, e, n), *rows, D, x, D, True, slots)
    grouped = (randn(b, 1, n), randn(b, 1, n))
    mamba_ssm.selective_state_update(randn(b, h, e, n), x, x, randn(h, e, n), *grouped)
    states = randn(b, e, k - 1)
    mamba_ssm.causal_conv1d_fn(u, weight, None, None, states, True, randn(b, e, k - 1), "silu")
    mamba_ssm.causal_conv1d_fn(u, weight, seq_idx=torch.zeros(b, l, dtype=torch.int32))
    mamba_ssm.causal_conv1d_update(u, randn(5, e, k), weight, None, "silu", slots.clamp(min=0), slots)
    mamba_ssm.causal_conv1d_update(u[..., 0], states, weight)


def vit() -> Callable[[], object]:
    config = mmm_vit.ViTConfig(image_size=16, patch_size=8, dim=8, depth=2, heads=2, class_token=True)
    encoder = mmm_vit.VisionTransformer(config)
    image = randn(2, 3, 16, 24)
    encoder(image)
    encoder.encode(image)
    encoder.features(image, [0, -1], norm=True)
    return lambda: encoder(image[0])


def fusion() -> Callable[[], object]:
    text, image = randn(2, 5, 8), randn(2, 6, 4)
    text_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    image_mask = torch.tensor([[True] * 6, [False] * 6])
    for method in mmm_fusion.available():
        fuse = mmm_fusion.create(method.name, 8, 4, heads=2, dropout=0.1)
        fuse(text, image)
        fuse(text, None, text_mask=text_mask)
        fuse(text, image, text_mask=text_mask, image_mask=image_mask, image_grid=(2, 3))
    fuse = mmm_fusion.create("mlp", 8, 4, heads=2, dropout=0.1)
    return lambda: fuse(text, image, text_mask=text_mask[0])


def block() -> Callable[[], object]:
    text, image, mask = randn(2, 3, 8), randn(2, 3, 16, 16), torch.ones(2, 3, dtype=torch.bool)
    sizes = {"image_size": 16, "patch_size": 8, "encoder_dim": 4, "encoder_depth": 1, "encoder_heads": 2}
    for method in mmm_fusion.available():
        whole = mmm_block.MultiModalMambaBlock(
            dim=8, depth=1, dropout=0.1, heads=2, d_state=4, fusion_method=method.name, **sizes
        )
        whole(text, image).sum().backward()
        whole(text, None, text_mask=mask)
        whole.fuse(text, image)
        model(method.name, sizes)
    return lambda: whole(text, image, text_mask=mask[0])


def model(method: str, sizes: dict[str, int]) -> None:
    """A model of this fusion method: rows with and without an image, whole, packed, in parts and written."""
    mark, images = 1, randn(2, 3, 16, 16)
    ids = torch.tensor([[2, mark, 3, 4], [5, 6, 7, mark], [8, 9, 2, 3]])
    mask = torch.tensor([[True] * 4, [True] * 4, [False] * 2 + [True] * 2])
    whole = mmm_block.MultiModalMamba(vocab_size=11, dim=8, depth=1, fusion_method=method, image_token_id=mark, **sizes)
    whole(ids, images, attention_mask=mask, labels=ids).loss.backward()
    whole(ids[:1], list(images[:1]), cu_seqlens=torch.tensor([0, 1, 4]), return_embeddings=True)
    state = whole(ids, whole.backbone.encode(images), return_state=True, last_only=True).state
    whole(ids[2:], state=state.rows(torch.tensor([2])))
    whole.step(ids[:, 0], mmm_block.ModelState.cat([state, state]).rows(torch.tensor([5, 0, 1])))
    drawn = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.1, "seeds": range(3)}
    whole.generate(ids, images, attention_mask=mask, max_new_tokens=2, **drawn)


def main(name: str) -> None:
    wrong = {"mmm_core": core, "mmm_vit": vit, "mmm_fusion": fusion, "mmm_block": block}[name]()
    try:
        wrong()
    except jaxtyping.TypeCheckError:
        return
    sys.exit(f"{name}: a call of the wrong shape went through, so nothing was checked")


main(sys.argv[1])
