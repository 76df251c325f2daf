"""Diagonal state spaces: the kernel of a long convolution is generated from a few parameters. It is a constant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from papers.fixture import Paper, each, has, normal, plain, right, run_time_only, through

PAPER = Paper(26, "no kernel is generated at run time; the skip is tap 0 of the kernel; the recurrence is the convolution")
CHANNELS, STATES, LENGTH = 4, 8, 64
LONG = 1024


class S4D(nn.Module):
    length = LENGTH

    def __init__(self) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(torch.rand(CHANNELS, generator=torch.Generator().manual_seed(3)) * 3 - 4)
        self.log_real = nn.Parameter(normal(CHANNELS, STATES, seed=4, scale=0.3))
        self.imaginary = nn.Parameter(math.pi * torch.arange(STATES).repeat(CHANNELS, 1).float())
        self.c, self.d = nn.Parameter(normal(CHANNELS, STATES, 2, seed=5)), nn.Parameter(normal(CHANNELS, seed=6))

    def discrete(self) -> tuple[torch.Tensor, torch.Tensor]:
        """C and dt A, complex."""
        a = torch.complex(-self.log_real.exp(), self.imaginary)
        dta = a * self.log_dt.exp()[:, None]
        return torch.view_as_complex(self.c) * (dta.exp() - 1) / a, dta

    def kernel(self) -> torch.Tensor:
        c, dta = self.discrete()
        powers = torch.exp(dta[..., None] * torch.arange(self.length))
        return 2 * torch.einsum("hn,hnl->hl", c, powers).real


class ByFourier(S4D):
    """As the paper's code: multiplied in the frequency domain, with room for no wrap-around; the skip is added after."""

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        n = 2 * self.length
        y = torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(self.kernel(), n=n), n=n)[..., : self.length]
        return F.gelu(y + u * self.d[:, None])


class ByConvolution(S4D):
    """A causal depthwise convolution, and the skip beside it."""

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        taps = self.kernel().flip(-1)[:, None]
        y = F.conv1d(F.pad(u, (self.length - 1, 0)), taps, groups=CHANNELS)
        return F.gelu(y + u * self.d[:, None])


class InReals(S4D):
    """The kernel from sines and cosines, no complex numbers; convolution with the signal on the right."""

    def kernel(self) -> torch.Tensor:
        re, im = -self.log_real.exp(), self.imaginary
        dt = self.log_dt.exp()[:, None]
        grow, turn = torch.exp(re * dt), im * dt
        nre, nim = grow * torch.cos(turn) - 1, grow * torch.sin(turn)
        cre, cim = self.c[..., 0], self.c[..., 1]
        pre, pim = cre * nre - cim * nim, cre * nim + cim * nre
        size = re * re + im * im
        bre, bim = (pre * re + pim * im) / size, (pim * re - pre * im) / size
        steps = torch.arange(self.length)
        return 2 * ((bre[..., None] * torch.cos(turn[..., None] * steps) - bim[..., None] * torch.sin(turn[..., None] * steps))
                    * torch.exp((re * dt)[..., None] * steps)).sum(1)  # fmt: skip

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        y = F.conv1d(u, self.kernel().flip(-1).unsqueeze(1), padding=self.length - 1, groups=CHANNELS)[..., : self.length]
        return F.gelu(y + self.d[None, :, None] * u)


class SkipInTheKernel(S4D):
    """What is to be deployed: D in tap 0."""

    def __init__(self) -> None:
        super().__init__()
        k = self.kernel().detach()
        k[:, 0] += self.d.detach()
        self.k = nn.Parameter(k.flip(-1)[:, None].contiguous())

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return F.gelu(F.conv1d(F.pad(u, (self.length - 1, 0)), self.k, groups=CHANNELS))


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, CHANNELS, LENGTH),)


@each(convolution=ByConvolution, reals=InReals)
def test_the_kernel_is_a_constant_with_the_skip_in_it(module: Any, door: str, record: Any) -> None:
    outcome = through(door, module(), inputs())
    right(outcome)
    run_time_only(outcome)
    has(outcome, Conv=1, Mul=0, Add=0)
    assert outcome.macs <= plain(SkipInTheKernel, inputs).macs * 2, outcome.graph
    record(PAPER, outcome)


@each(fourier=ByFourier)
def test_the_spectrum_of_the_kernel_is_a_constant(module: Any, door: str, record: Any) -> None:
    outcome = through(door, module(), inputs())
    right(outcome)
    run_time_only(outcome)
    has(outcome, Exp=0, Sin=0, Cos=0, Einsum=0)
    record(PAPER, outcome)


class Recurrence(S4D):
    """s_t = A s_{t-1} + u_t, y_t = 2 Re(C s_t) + D u_t, in reals, step by step."""

    length = 12

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        c, dta = self.discrete()
        step = dta.exp()
        ar, ai, cr, ci = step.real, step.imag, c.real, c.imag
        sr = si = torch.zeros_like(u[..., 0])[..., None].expand(-1, -1, STATES)
        ys = []
        for t in range(self.length):
            sr, si = ar * sr - ai * si + u[..., t, None], ar * si + ai * sr
            ys.append(2 * (cr * sr - ci * si).sum(-1) + self.d * u[..., t])
        return torch.stack(ys, -1)


def short() -> tuple[torch.Tensor]:
    return (normal(2, CHANNELS, Recurrence.length),)


@each(unrolled=Recurrence)
def test_a_recurrence_of_fixed_coefficients_is_a_convolution(module: Any, door: str, record: Any) -> None:
    outcome = through(door, module(), short())
    right(outcome, 1e-4)
    run_time_only(outcome)
    assert outcome.products == 1 and sum(outcome.ops.values()) <= 6, outcome.graph
    record(PAPER, outcome)


class Long(ByConvolution):
    length = LONG


def test_a_long_kernel_agrees_with_the_recurrence() -> None:
    """1024 steps: float32 taps made in one go against a float64 recurrence."""
    module = Long().eval()
    u = normal(1, CHANNELS, LONG)
    outcome = through("torch", module, (u,))
    right(outcome, 1e-4)
    run_time_only(outcome)
    c, dta = (v.detach().to(torch.complex128) for v in module.double().discrete())
    state, ys = torch.zeros(CHANNELS, STATES, dtype=torch.complex128), []
    for t in range(LONG):
        state = state * dta.exp() + u[0, :, t, None]
        ys.append(2 * (c * state).sum(-1).real + module.d.detach() * u[0, :, t])
    want = F.gelu(torch.stack(ys, -1)).numpy()
    assert abs(outcome.outputs[0][0] - want).max() <= 1e-4 * abs(want).max()


class Varying(Recurrence):
    """The step depends on the input: no convolution computes it."""

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        state, ys = torch.zeros_like(u[..., 0]), []
        for t in range(self.length):
            state = torch.sigmoid(u[..., t]) * state + u[..., t]
            ys.append(state)
        return torch.stack(ys, -1)


def test_coefficients_that_depend_on_the_input_stay() -> None:
    outcome = through("torch", Varying(), short())
    right(outcome)
    has(outcome, Conv=0)


def test_other_parameters_of_a_fixed_kernel_need_another_compile() -> None:
    """The kernel was made in complex numbers while the module was read: new parameters must not be ignored."""
    module = ByConvolution().eval()
    compiled = rewriter.compile(module, inputs(), backend="onnxruntime")
    compiled.update(module.state_dict())
    with pytest.raises(rewriter.RewriterError, match="log_dt"):
        compiled.update({**module.state_dict(), "log_dt": module.log_dt + 1})
