"""The names under which compositions were published, as aliases of the methods that they are."""

from __future__ import annotations

from dataclasses import replace

from edge_sdk.methods import fedasync, fedattn, fedavg, fedavg_p, g_blend, harmony, hgb, modality_mirror, ogm_ge, pmr
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

__all__ = [
    "C_GB",
    "FEDATT",
    "FEDAVG_P_FIX",
    "FEDHGB",
    "FED_CONCAT_ASYNC",
    "FED_G_BLEND_ASYNC",
    "FED_OGM",
    "FED_OGM_GE_ASYNC",
    "FED_PMR_ASYNC",
    "G_BLENDING",
    "HARMONY_ASYNC",
    "MODALITY_MIRROR_ASYNC",
    "M_GB",
]
