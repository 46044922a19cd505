"""ModalityMirror, first phase: some clients train one modality alone, the others all of them.

Source: "ModalityMirror: Improving Audio Classification in Modality Heterogeneity Federated Learning with Multimodal
Distillation", NOSSDAV 2025, arXiv:2408.15803. ModalityMirror-Async is a baseline of MBA.

    init     T_n: all modalities with probability multi_share, else one of them; fixed per client
    client   |T_n| = 1: as soon as it arrives, (φ_m, d_m) by CE on d_m(φ_m(x_m))
             else: waits for all, then encoders and ψ by CE on ψ(concat)
    server   every module of the update: θ ← (1 − r) θ + r θ_n,   r = alpha (τ + 1)^−a

Differs from the source: its second phase, which distils the multi-modal teacher into a uni-modal student, is left out,
as MBA's comparison leaves it out (all modalities are used for testing); the share of clients is not stated there. T_n
is drawn by the server from (seed, device) and told with every task; with several target modalities it is always all. A
client whose one target does not come in a round trains what came. Results are unbalanced by design.
"""

from __future__ import annotations

from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import seeds, staleness
from edge_sdk.learn.records import Batch, ClientContext, Needs, Out, Phase, Rates, RoundView, State, UpdateView
from edge_sdk.methods.base import AsyncServerRule, ClientRule, Method

UNIMODAL = "unimodal"


class Config(Model):
    """Options of ModalityMirror."""

    alpha: float = Field(default=0.9, gt=0, le=1)
    a: float = Field(default=0.5, ge=0)  # exponent of the staleness decay
    multi_share: float = Field(default=0.5, ge=0, le=1)  # probability that a client trains all modalities
    seed: int = Field(default=0, ge=0)  # of the target sets


def target(device: str, modalities: tuple[str, ...], *, multi_share: float, seed: int) -> str:
    """Returns the one modality that a device trains, "" for all of them; the same whenever it is asked for."""
    share = seeds.derive(seed, "modality_mirror", "multi", device) / 2.0**63
    if len(modalities) < 2 or share < multi_share:
        return ""
    return modalities[seeds.derive(seed, "modality_mirror", "one", device) % len(modalities)]


class Client(ClientRule[Config]):
    """One modality alone, or the fused model, as the task says."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        m = view.plan.phase
        if m in view.waiting:
            return ()
        if m not in view.here:
            return super().schedule(view)
        return (Phase(UNIMODAL, (m,), (f"encoder.{m}", f"head.{m}"), view.plan.epochs, final=True),)

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        if ctx.phase.name != UNIMODAL:
            return super().forward(ctx, batch)
        (m,) = ctx.phase.modalities
        features = ctx.model.encode(batch.x, (m,))
        return Out(features, ctx.model.module(f"head.{m}")(features[m]))


class Server(AsyncServerRule[Config]):
    """FedAsync per module, and who trains what."""

    def stage(self, state: State, device: str) -> str:
        c = self.config
        return target(device, self.spec.modality_names, multi_share=c.multi_share, seed=c.seed)

    def rates(self, state: State, update: UpdateView) -> tuple[Rates, State]:
        c = self.config
        return Rates.same(update.modules, c.alpha * staleness.polynomial(update.staleness, c.a)), {}


METHOD = Method(
    "modality_mirror", Config, Client, Server, "arXiv:2408.15803", needs=Needs(heads=True), sends=("target set",)
)

__all__ = ["METHOD", "Client", "Config", "Server", "target"]
