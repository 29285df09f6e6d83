"""The laws of methods: what any way to forget has to keep, whatever its loss is.

They are asked of a small world that is made here, on small models of several families, with taxonomies of one
level and of three::

    from riemann_unlearn.testing import GradientMethodLaws

    class TestMyMethod(GradientMethodLaws):
        def make(self):
            return MyMethod()
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from riemann_unlearn._yaml import dump_yaml
from riemann_unlearn.config import RunConfig
from riemann_unlearn.data import Concept, Dataset, Samples, Taxonomy
from riemann_unlearn.data.batch import make_batch
from riemann_unlearn.models import DualEncoder, create_model
from riemann_unlearn.unlearning import (
    DirectMethod,
    GradientMethod,
    Method,
    Problem,
    Step,
    create_method,
    unlearn,
)
from riemann_unlearn.unlearning.split import SplitTower

BIRDS, FRUIT = ("owl", "duck", "swan"), ("apple", "pear", "fig")


def small_world(levels: int) -> Dataset:
    """Six concepts of two kinds, three seen images and one held-out one of each, in some levels."""
    above = tuple(f"everything, {i}" for i in range(levels - 2))
    concepts = [
        Concept(name, name, ("thing",), ((kind, *above) if levels > 1 else ()))
        for kind, names in (("bird", BIRDS), ("fruit", FRUIT))
        for name in names
    ]
    taxonomy = Taxonomy(concepts)
    generator = torch.Generator().manual_seed(0)

    def samples(each: int) -> Samples:
        # The concepts in turn: the first six rows have each of them once.
        concept = torch.arange(len(concepts)).repeat(each)
        images = torch.randint(256, (len(concept), 3, 16, 16), generator=generator, dtype=torch.uint8)
        return Samples(images, concept, torch.zeros_like(concept), ("laws",), taxonomy)

    return Dataset(f"laws, {levels} levels", samples(3), samples(1))


def small_model(architecture: str) -> DualEncoder:
    """A model of a family, of one layer on either side, always of the same weights."""
    towers = {
        "embed_dim": 16,
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 6870,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "tokenizer_kwargs": {"bpe_path": "bpe_emoji.txt.gz"},
        },
    }
    # The weights are fixed and the caller's random numbers go on as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model({"architecture": architecture, "model_cfg": towers}).eval()


class MethodLaws:
    """What the classes of laws share: subclass one of those below and implement :meth:`make`."""

    architectures: Sequence[str] = ("MERU", "CLIP", "SigLIP")
    """Families of models; those that the method says it cannot be used on are passed over."""
    levels: Sequence[int] = (1, 3)
    """How many levels the taxonomies have."""

    def make(self) -> Method:
        """The method, with the settings that it is to be tested with."""
        raise NotImplementedError

    def problems(self) -> Iterator[Problem]:
        """All combinations of model and data that the method can be used on; there must be one."""
        method, some = self.make(), False
        for architecture in self.architectures:
            for levels in self.levels:
                data = small_world(levels)
                problem = Problem(small_model(architecture), data, data.taxonomy.select(BIRDS[:2]))
                if method.unmet(problem) is None:
                    some = True
                    yield problem
        assert some, f"{method.name} can be used on none of {', '.join(self.architectures)}"

    def run(self, problem: Problem, **options: Any) -> DualEncoder:
        """The model after a short run on a copy."""
        model = copy.deepcopy(problem.model)
        forget = [problem.taxonomy.concepts[i].name for i in problem.selection.concepts.nonzero()[:, 0]]
        options = {"forget_batch": 4, "retain_batch": 6, "progress": False} | options
        return unlearn(model, problem.dataset, forget=forget, method=self.short(), **options).model

    def short(self) -> Method:
        """The method with few steps, if it takes any."""
        return self.make()

    def test_it_says_what_it_is(self) -> None:
        """By name, in words, and as a frozen dataclass that equals another of the same settings."""
        method = self.make()
        assert re.fullmatch(r"[\w-]+", method.name)
        assert method.description
        assert dataclasses.is_dataclass(method)
        assert method == self.make()
        for entry in dataclasses.fields(method):
            with pytest.raises(dataclasses.FrozenInstanceError):
                # Its own value, which only a frozen dataclass refuses.
                setattr(method, entry.name, getattr(method, entry.name))
        # What a run is recorded by: settings must be plain enough for the file.
        dump_yaml(RunConfig(forget=["owl"], method=method.name, settings=method.settings()).to_mapping())

    def test_settings_outside_their_ranges_are_refused(self) -> None:
        """Each by name, below, above, and for what is no number."""
        method = self.make()
        for entry in dataclasses.fields(method):
            if "range" not in entry.metadata:
                continue
            low, high = entry.metadata["range"]
            whole = isinstance(entry.default, int)
            assert low <= getattr(method, entry.name) <= high
            # NaN compares as false either way, True is an int to Python, and "1" is what a shell would pass.
            for value in (low - 1, high + 1 if whole else high * 2 + 1, float("nan"), True, "1"):
                with pytest.raises(ValueError, match=rf"{method.name}: {entry.name} must be"):
                    dataclasses.replace(method, **{entry.name: value})
            for value in (low, high):
                dataclasses.replace(method, **{entry.name: value})
        with pytest.raises(ValueError, match="has no setting"):
            create_method(type(method), {"no such setting": 1})

    def test_a_run_repeats_bitwise_and_leaves_a_usable_model(self) -> None:
        """Of the same seed; all weights are finite, and something has changed."""
        *_, problem = self.problems()  # whole runs take seconds: of one model, with the most levels
        one, other = self.run(problem), self.run(problem)
        before, state = problem.model.state_dict(), one.state_dict()
        assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())
        assert all(value.isfinite().all() for value in state.values())
        assert any(not torch.equal(state[name], value) for name, value in before.items())
        assert not one.training

    def test_torchs_default_dtype_is_of_no_matter(self) -> None:
        """A library around this one may have set it; weights stay float32."""
        problem = next(self.problems())
        # Put back whatever happens, or every test after this one would run in float64.
        torch.set_default_dtype(torch.float64)
        try:
            model = self.run(problem)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


class DirectMethodLaws(MethodLaws):
    """The laws of a method that changes the model at once."""

    def make(self) -> DirectMethod:
        """The method."""
        raise NotImplementedError


class GradientMethodLaws(MethodLaws):
    """The laws of a method that takes steps."""

    order_matters: bool = False
    """Whether the loss of a batch depends on the order of its pairs, as it may where one draws at random."""
    autocast_tolerance: float = 0.1
    """By how much terms may differ under bfloat16 autocast, relative to the largest of them."""

    def make(self) -> GradientMethod:
        """The method."""
        raise NotImplementedError

    def short(self) -> GradientMethod:
        """Of three steps."""
        return dataclasses.replace(self.make(), steps=3)

    def step(self, problem: Problem, rows: Sequence[int] | Tensor, number: int = 0) -> Step:
        """A batch of the seen images at some rows: for the same rows the same views and wordings."""
        seen, model = problem.dataset.seen, problem.model
        # One by one, so that a view does not depend on which others are in the batch.
        parts = [
            make_batch(seen, torch.tensor([row]), model.image_size, torch.Generator().manual_seed(int(row)))
            for row in rows
        ]
        rows = torch.as_tensor(rows)
        batch = make_batch(seen, rows, model.image_size, torch.Generator().manual_seed(0))
        # The first texts are the names' wordings, one an image.
        texts = [part.texts[0] for part in parts] + batch.texts[len(parts) :]
        images = torch.cat([part.images for part in parts])
        return Step(problem, dataclasses.replace(batch, images=images, texts=texts), number)

    def mixed(self, problem: Problem) -> Tensor:
        """Rows of a batch of forget and retain pairs."""
        return torch.arange(len(problem.dataset.seen))

    def terms(self, problem: Problem, step: Step) -> dict[str, Tensor]:
        """The terms of a step of the untouched model."""
        return dict(self.make().objective(problem)(step))

    def test_terms_are_scalars_by_name_and_finite_with_their_gradients(self) -> None:
        """And some of the parameters that are to move have a gradient that is not 0."""
        for problem in self.problems():
            method = self.make()
            moved = method.parameters(problem.model)
            assert moved
            terms = self.terms(problem, self.step(problem, self.mixed(problem)))
            assert terms
            for name, term in terms.items():
                assert name.endswith("_loss")
                assert term.shape == ()
                assert term.isfinite()
            total = torch.stack(list(terms.values())).sum()
            gradients = [g for g in torch.autograd.grad(total, moved, allow_unused=True) if g is not None]
            assert all(g.isfinite().all() for g in gradients)
            assert any(g.any() for g in gradients)

    def test_a_small_step_against_the_gradient_descends(self) -> None:
        """A method that ascends says so by the sign of its term."""
        for problem in self.problems():
            method, rows = self.make(), self.mixed(problem)
            objective, moved = method.objective(problem), method.parameters(problem.model)
            before = torch.stack(list(objective(self.step(problem, rows)).values())).sum()
            gradients = torch.autograd.grad(before, moved, allow_unused=True, materialize_grads=True)
            length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            with torch.no_grad():
                for weight, gradient in zip(moved, gradients, strict=True):
                    # Of one length for every gradient, so short that the loss is all but linear along it.
                    weight.sub_(1e-4 * gradient / length)
            assert torch.stack(list(objective(self.step(problem, rows)).values())).sum() < before

    def test_the_order_of_the_pairs_is_of_no_matter(self) -> None:
        """Up to rounding; a method that draws at random says that it is."""
        if self.order_matters:
            pytest.skip("the method draws at random, so the order of the pairs decides")
        for problem in self.problems():
            rows = self.mixed(problem)
            shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
            one, other = (self.terms(problem, self.step(problem, some)) for some in (rows, shuffled))
            assert one.keys() == other.keys()
            for name, value in one.items():
                torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("kind", ["forget", "retain"])
    def test_a_batch_may_lack_either_kind(self, kind: str) -> None:
        """Terms over no pairs are 0 with gradient 0, not NaN."""
        for problem in self.problems():
            # Of each seen image, whether its concept is to be forgotten.
            gone = problem.selection.concepts[problem.dataset.seen.concept]
            rows = (gone if kind == "retain" else ~gone).nonzero()[:, 0]
            terms = self.terms(problem, self.step(problem, rows))
            total = torch.stack(list(terms.values())).sum()
            assert total.isfinite()
            # A term over no pairs may be a constant.
            if total.requires_grad:
                moved = self.make().parameters(problem.model)
                gradients = torch.autograd.grad(total, moved, allow_unused=True)
                assert all(g.isfinite().all() for g in gradients if g is not None)

    def test_a_step_may_begin_behind_layers_that_stay(self) -> None:
        """From what reaches a cut in the image tower, the terms are those of the images."""
        for problem in self.problems():
            step, visual = self.step(problem, self.mixed(problem)), problem.model.visual
            images = problem.model.preprocess(step.batch.images)
            split = SplitTower(visual, list(visual.parameters())[-2:], images)
            cut = dataclasses.replace(problem, split=split)
            batch = dataclasses.replace(step.batch, images=split.front(images).detach())
            whole, found = self.terms(problem, step), self.terms(cut, Step(cut, batch, kept=True))
            for name, value in whole.items():
                torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)

    def test_an_objective_repeats_bitwise(self) -> None:
        """Of the same batch and the same step."""
        for problem in self.problems():
            one, other = (self.terms(problem, self.step(problem, self.mixed(problem), 3)) for _ in range(2))
            assert all(torch.equal(one[name], other[name]) for name in one)

    def test_the_model_is_left_as_it_was(self) -> None:
        """The driver moves weights, an objective does not; nor does it leave hooks or modes behind."""
        for problem in self.problems():
            before = copy.deepcopy(problem.model.state_dict())
            self.terms(problem, self.step(problem, self.mixed(problem)))
            assert all(torch.equal(before[name], v) for name, v in problem.model.state_dict().items())
            assert not problem.model.training
            for module in problem.model.modules():
                assert not module._forward_hooks
                assert not module._forward_pre_hooks

    def test_rates_are_finite_and_not_negative(self) -> None:
        """At every step."""
        method = self.short()
        assert all(0 <= method.rate(step) < float("inf") for step in range(method.steps))

    def test_it_runs_under_autocast(self) -> None:
        """In bfloat16 the terms are what they are in float32, but for rounding."""
        for problem in self.problems():
            step = self.step(problem, self.mixed(problem))
            exact = self.terms(problem, step)
            # A step keeps the features that were asked of it, and they would be those of float32.
            again = self.step(problem, self.mixed(problem))
            objective = self.make().objective(problem)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = objective(again)
            scale = max(1.0, *(abs(float(term.detach())) for term in exact.values()))
            for name, term in exact.items():
                assert rough[name].isfinite()
                assert abs(float(rough[name].detach() - term.detach())) <= self.autocast_tolerance * scale
