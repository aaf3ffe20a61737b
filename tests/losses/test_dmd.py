"""Distribution matching distillation does what its formulas say, where the scores are known."""

import pytest
import torch
from torch import nn

from diffsynth_omniavatar.losses import dmd

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def gaussian_clean(x, level, mean, deviation):
    """E[x_0 | x_s] of samples [B, n] whose x_0 are N(mean, deviation^2)."""
    s = dmd.along(level, x)
    variance = ((1 - s) * deviation) ** 2 + s**2
    return mean + (1 - s) * deviation**2 / variance * (x - (1 - s) * mean)


def test_the_gradient_is_its_closed_form_between_gaussians():
    """x_g = m + d z against N(0, d^2): x_0 of both differ by m s^2 / ((1 - s)^2 d^2 + s^2), which is (s / (1 - s))^2
    times the gradient by m of the KL divergence between the two at noise level s.
    """
    torch.manual_seed(0)
    mean, deviation = torch.tensor(0.7, requires_grad=True), 0.5
    made = mean + deviation * torch.randn(64, 3)
    level = dmd.draw_levels(64, 5.0, 0.02, 0.98)
    x = dmd.noisy(made.detach(), level, torch.randn(64, 3))
    fake, real = gaussian_clean(x, level, 0.7, deviation), gaussian_clean(x, level, 0.0, deviation)
    gradient = dmd.dmd_gradient(made.detach(), fake, real)
    s = level[:, None]
    variance = ((1 - s) * deviation) ** 2 + s**2
    torch.testing.assert_close(fake - real, (0.7 * s**2 / variance).expand(-1, 3))
    divergence = mean.detach().clone().requires_grad_()
    ((((1 - s) * divergence) ** 2 / (2 * variance)).sum()).backward()
    torch.testing.assert_close(((fake - real)[:, :1] * ((1 - s) / s) ** 2).sum(), divergence.grad)
    distance = (made.detach() - real).abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(gradient, (fake - real) / distance)
    dmd.student_loss(made, gradient).backward()
    torch.testing.assert_close(mean.grad, gradient.mean())


def test_a_weight_counts_places_and_samples_without_a_distance_count_nothing():
    made = torch.randn(2, 4, requires_grad=True)
    gradient = dmd.dmd_gradient(made.detach(), torch.ones(2, 4), torch.stack([made[0].detach(), torch.zeros(4)]))
    assert (gradient[0] == 0).all() and gradient[1].isfinite().all()
    weight = torch.tensor([0.0, 4.0, 0.0, 0.0])
    dmd.student_loss(made, gradient, weight).backward()
    torch.testing.assert_close(made.grad, weight * gradient / 8)
    noise, clean, flow = torch.randn(3, 2, 4)
    wanted = ((flow - noise + clean) ** 2 * weight).mean()
    torch.testing.assert_close(dmd.critic_loss(flow, clean, noise, weight), wanted)


@pytest.mark.parametrize("solver", ["renoise", "euler"])
def test_a_rollout_is_the_students_own_steps_with_a_gradient_through_the_last(solver):
    levels, passes = [1.0, 0.9, 0.6], []
    factor = torch.tensor(0.3, requires_grad=True)

    def predict(x, level):
        passes.append((level.clone(), torch.is_grad_enabled(), x.requires_grad))
        return factor * x

    torch.manual_seed(1)
    start = torch.randn(2, 5)
    x, state = start, torch.get_rng_state()
    for step, s in enumerate(levels[:2]):
        flow = 0.3 * x
        fresh = torch.randn_like(x) if solver == "renoise" else None
        following = levels[step + 1]
        x = x + (following - s) * flow if fresh is None else (1 - following) * (x - s * flow) + following * fresh
    torch.set_rng_state(state)
    clean = dmd.rollout(predict, start, levels, 2, solver)
    torch.testing.assert_close(clean, x - 0.6 * 0.3 * x)
    assert [float(level[0]) for level, *_ in passes] == pytest.approx(levels)
    assert [computed for _, computed, _ in passes] == [False, False, True] and not any(one[2] for one in passes)
    clean.sum().backward()
    torch.testing.assert_close(factor.grad, (-0.6 * x).sum())
    with torch.no_grad():
        assert not dmd.rollout(predict, start, levels, 0, solver).requires_grad and len(passes) == 4


def test_levels_follow_the_shift_and_keep_their_bounds():
    torch.manual_seed(0)
    levels = dmd.draw_levels(4000, 5.0, 0.02, 0.98)
    assert levels.min() >= 0.02 and levels.max() == pytest.approx(0.98)
    assert (levels < 5 / 6).float().mean().item() == pytest.approx(0.5, abs=0.03)  # u = 1/2 becomes 5/6


def test_guidance_is_of_the_samples_within_its_range():
    positive, negative = torch.randn(2, 3, 4)
    flow = dmd.guided(positive, negative, 4.5, torch.tensor([True, False, True]))
    torch.testing.assert_close(flow[[0, 2]], (negative + 4.5 * (positive - negative))[[0, 2]])
    assert torch.equal(flow[1], positive[1])


class Flow(nn.Sequential):
    """A flow in the plane."""

    def __init__(self, width):
        super().__init__(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, level):
        return super().forward(torch.cat([x, level[:, None], level[:, None] ** 2], dim=1))


def test_a_student_of_one_step_comes_to_make_its_teachers_distribution():
    """The teacher's flow is that of a Gaussian, correlated in the plane and away from 0."""
    torch.manual_seed(0)
    mean = torch.tensor([1.0, -0.5])
    root = torch.tensor([[0.8, 0.0], [0.5, 0.3]])
    covariance = root @ root.T

    def teacher(x, level):
        s = level[:, None, None]
        inside = (1 - s) ** 2 * covariance + s**2 * torch.eye(2)
        gain = (1 - s) * covariance @ torch.linalg.inv(inside)
        clean = mean + (gain @ (x - (1 - s[..., 0]) * mean)[..., None])[..., 0]
        return (x - clean) / s[..., 0]

    student, critic = Flow(32), Flow(64)
    steps = torch.optim.Adam(student.parameters(), 2e-2, (0.0, 0.99)), torch.optim.Adam(critic.parameters(), 2e-2)
    for step in range(400):
        is_students = step % 4 == 3
        steps[0].param_groups[0]["lr"] = 2e-2 * (1 - step / 400)
        with torch.set_grad_enabled(is_students):
            made = dmd.rollout(student, torch.randn(256, 2), [1.0], 0, "renoise")
        level, noise = dmd.draw_levels(256, 1.0, 0.02, 0.98), torch.randn(256, 2)
        x = dmd.noisy(made.detach(), level, noise)
        if is_students:
            with torch.no_grad():
                fake, real = (dmd.clean_of(x, level, flow(x, level)) for flow in (critic, teacher))
            loss = dmd.student_loss(made, dmd.dmd_gradient(made.detach(), fake, real))
        else:
            loss = dmd.critic_loss(critic(x, level), made, noise)
        loss.backward()
        steps[not is_students].step()
        steps[not is_students].zero_grad()
    with torch.no_grad():
        made = dmd.rollout(student, torch.randn(4096, 2), [1.0], 0, "renoise")
    assert (made.mean(dim=0) - mean).abs().max() < 0.1
    assert (torch.cov(made.T) - covariance).abs().max() < 0.1
