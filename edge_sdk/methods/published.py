"""The names under which compositions were published, as aliases of the methods that they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from edge_sdk.methods import (
    bmsfed,
    fedasync,
    fedattn,
    fedavg,
    fedavg_p,
    g_blend,
    harmony,
    hgb,
    mba,
    modality_mirror,
    ogm_ge,
    pmr,
    qqr,
)
from edge_sdk.methods.base import compose

C_GB = replace(hgb.METHOD, name="c_gb", config=hgb.ClientBlendingConfig)
FEDATT = replace(fedattn.METHOD, name="fedatt")
FEDAVG_P_FIX = replace(fedavg_p.METHOD, name="fedavg_p_fix", config=fedavg_p.Fixed)
FEDHGB = replace(hgb.METHOD, name="fedhgb")
FED_CONCAT_ASYNC = replace(fedasync.METHOD, name="fed_concat_async")
FED_G_BLEND_ASYNC = replace(g_blend.METHOD, name="fed_g_blend_async")
FED_OGM = replace(compose(ogm_ge.METHOD, fedavg.METHOD), name="fed_ogm")
FED_OGM_GE_ASYNC = replace(ogm_ge.METHOD, name="fed_ogm_ge_async")
FED_PMR_ASYNC = replace(pmr.METHOD, name="fed_pmr_async")
G_BLENDING = replace(compose(g_blend.METHOD, fedavg.METHOD), name="g_blending")
HARMONY_ASYNC = replace(harmony.METHOD, name="harmony_async")
MODALITY_MIRROR_ASYNC = replace(modality_mirror.METHOD, name="modality_mirror_async")
M_GB = replace(hgb.METHOD, name="m_gb", config=hgb.ModalityBlendingConfig)


class PartialModality(qqr.Config):
    """PM, and FM where nothing is missing: no prototypes at all."""

    fill: Literal["prototype", "zero", "input"] = "zero"
    plr: Literal["mse", "contrastive", "off"] = "off"


class ZeroFilling(PartialModality):
    """ZF."""

    fill: Literal["prototype", "zero", "input"] = "input"


class Substitution(qqr.Config):
    """QQR-N: prototypes stand for what is missing; nothing pulls."""

    plr: Literal["mse", "contrastive", "off"] = "off"


class Pmm(Substitution):
    """PMM: the same with float32 prototypes."""

    bits: Literal[0, 2, 4, 8] = 0


class Pulling(qqr.Config):
    """QQR-L: prototypes pull on what is poor; zeros stand for what is missing."""

    fill: Literal["prototype", "zero", "input"] = "zero"


class LocalPrototypes(bmsfed.Config):
    """BMSFed-local: a device's own prototypes in modal enhancement."""

    prototypes: Literal["global", "local"] = "local"


class MbaWithoutRegularization(mba.Config):
    """MBA's ablation: anchors are trained for their distances, nothing pulls towards them."""

    beta: float = Field(default=0.0, ge=0)


class MbaWithoutBalancing(mba.Config):
    """MBA's ablation: the regulariser alone, every module mixed at one rate."""

    gamma: float = Field(default=0.0, ge=0)


BMSFED_LOCAL = replace(bmsfed.METHOD, name="bmsfed_local", config=LocalPrototypes)
FM = replace(qqr.METHOD, name="fm", config=PartialModality)
MBA_WITHOUT_BALANCING = replace(mba.METHOD, name="mba_without_balancing", config=MbaWithoutBalancing)
MBA_WITHOUT_REGULARIZATION = replace(
    mba.METHOD, name="mba_without_regularization", config=MbaWithoutRegularization
)  # fmt: skip
PM = replace(qqr.METHOD, name="pm", config=PartialModality)
PMM = replace(qqr.METHOD, name="pmm", config=Pmm, source="arXiv:2505.16138")
QQR_L = replace(qqr.METHOD, name="qqr_l", config=Pulling)
QQR_N = replace(qqr.METHOD, name="qqr_n", config=Substitution)
ZF = replace(qqr.METHOD, name="zf", config=ZeroFilling)

__all__ = [
    "BMSFED_LOCAL",
    "C_GB",
    "FEDATT",
    "FEDAVG_P_FIX",
    "FEDHGB",
    "FED_CONCAT_ASYNC",
    "FED_G_BLEND_ASYNC",
    "FED_OGM",
    "FED_OGM_GE_ASYNC",
    "FED_PMR_ASYNC",
    "FM",
    "G_BLENDING",
    "HARMONY_ASYNC",
    "MBA_WITHOUT_BALANCING",
    "MBA_WITHOUT_REGULARIZATION",
    "MODALITY_MIRROR_ASYNC",
    "M_GB",
    "PM",
    "PMM",
    "QQR_L",
    "QQR_N",
    "ZF",
]
