"""`sixbit calibrate`: record runs, fit the error model, search threshold and tau."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.commands import _inputs, _numbers, _shared
from sixbit_jax.commands._networks import Network
from sixbit_jax.commands._settings import asked_size, settings_for
from sixbit_jax.commands._targets import check_targets
from sixbit_jax.commands._tensors import chosen_fields, condition_files, read_conditions

DESCRIPTION = """\
Makes a policy for a model: samples prompts with NVFP4 weights and records, for each
block and site, how much the block changed (gamma) and how large the error of NVFP4
activations was; fits the line that predicts one from the other; then finds

  threshold  so that activations are --bits wide on average (NVFP4 4, INT8 8)
  tau        so that --skips of the blocks are skipped, or, with --max-drift, as many
             as keep the latents that near to those of the run without skips

and, with --attention-share, the threshold of sparse attention that computes this share
of the keys,

and writes a JSON file for `sixbit sample --policy` and `sixbit compare`. It prints how
strongly gamma and error are correlated, the assumption that the method rests on.

With --recipe dvd-quant it finds the threshold delta of delta-guided bit switching for
--bits instead, and no tau.
"""
EPILOG = """\
examples:
  sixbit calibrate --out policy.json --plot correlation.png
  sixbit calibrate --model cogvideox-5b-nvfp4 --prompt-embeds prompts.safetensors \\
      --out policy.json --bits 6 --skips 0.3
  sixbit calibrate --together all --shared --out policy.json
  sixbit calibrate --recipe dvd-quant --out delta.json
  sixbit compare full delta.json --recipe dvd-quant
"""
SWITCHING = "dvd-quant"
"""The recipe whose policy has a delta."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="policy (JSON)"
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="also draw gamma against error for each site (png, svg, pdf)",
    )
    _inputs.add_model_arguments(parser)
    _inputs.add_recipe_argument(parser)
    parser.add_argument(
        "--prompts",
        metavar="N",
        type=_numbers.whole(1, _numbers.MAX_COUNT),
        default=8,
        help="how many captions of the bundled model's training set to record, where "
        "none are given (8)",
    )
    _add_targets(parser.add_argument_group("targets"))
    method = parser.add_argument_group("method")
    _add_skipping(method)
    _add_arithmetic(method)
    _shared.add_sampling_arguments(parser)
    _shared.add_pair_argument(parser)
    size = parser.add_argument_group("size, in latents")
    _shared.add_size_arguments(size, "default: the training size")
    _shared.add_condition_arguments(parser)


def _add_targets(target: Any) -> None:
    target.add_argument(
        "--bits",
        type=_numbers.real(4.0, 8.0),
        default=6.0,
        help="mean activation width, 4 to 8 (6.0)",
    )
    skips = target.add_mutually_exclusive_group()
    skips.add_argument(
        "--skips",
        type=_numbers.real(0.0, 1.0),
        default=0.3,
        help="share of the blocks to skip; 0: no delta cache (0.3)",
    )
    skips.add_argument(
        "--max-drift",
        type=_numbers.real(0.0, _numbers.MAX_RATIO),
        metavar="D",
        help="skip as much as keeps the relative L2 distance of the latents below D",
    )
    target.add_argument(
        "--search-prompts",
        metavar="N",
        type=_numbers.whole(1, _numbers.MAX_COUNT),
        default=2,
        help="prompts to sample for each tau that is tried (2)",
    )


# Options of policies that are not given have the policies' own defaults; a test holds
# the help to those.
_OF_POLICIES = ("max_skips", "warmup", "together", "outlier_ratio", "final_int8")


def _add_skipping(method: Any) -> None:
    """Options of the delta cache and its refreshes."""
    method.add_argument(
        "--max-skips",
        type=_numbers.whole(1, _numbers.MAX_STEPS),
        default=argparse.SUPPRESS,
        help="longest run of skips (2)",
    )
    method.add_argument(
        "--warmup",
        type=_numbers.whole(0, _numbers.MAX_STEPS),
        default=argparse.SUPPRESS,
        help="steps before the first skip (2)",
    )
    method.add_argument(
        "--no-purify", action="store_true", help="leave out Purified Delta Refresh"
    )
    method.add_argument(
        "--outlier-ratio",
        type=_numbers.real(0.0, _numbers.MAX_RATIO),
        default=argparse.SUPPRESS,
        help="of Purified Delta Refresh: a refreshed site whose max|x| / mean|x| "
        "exceeds it runs in BF16 (25)",
    )
    method.add_argument(
        "--no-refresh-int8",
        action="store_true",
        help="a block that returns from skipping need not run in INT8",
    )
    method.add_argument(
        "--together",
        type=_number_or_all,
        default=argparse.SUPPRESS,
        metavar="N|all",
        help="so many neighbouring blocks skip as one and share a delta (1)",
    )
    method.add_argument(
        "--shared",
        action="store_true",
        help="both guidance branches skip as one",
    )
    method.add_argument(
        "--cache-format",
        choices=("bf16", "int8", "nvfp4", "float32"),
        default="bf16",
        help="storage of the delta cache while searching (bf16)",
    )


def _add_arithmetic(method: Any) -> None:
    """Options of what the blocks multiply."""
    method.add_argument(
        "--residual",
        action="store_true",
        help="compare errors relative to the residual stream (times gamma)",
    )
    method.add_argument(
        "--final-int8",
        type=_numbers.whole(0, _numbers.MAX_STEPS),
        default=argparse.SUPPRESS,
        metavar="N",
        help="run the last N steps in INT8: nothing corrects their errors (0)",
    )
    scores = method.add_mutually_exclusive_group()
    _shared.add_attention_argument(scores, " of all blocks while searching")
    scores.add_argument(
        "--int8-attention",
        type=_numbers.real(0.0, 1.0),
        metavar="SHARE",
        help="the policy gives 8-bit scores to blocks that change little: the limit is "
        "that of SHARE of the recorded blocks (none)",
    )
    method.add_argument(
        "--attention-share",
        type=_numbers.real(0.0, 1.0),
        metavar="SHARE",
        help="the policy attends to chosen blocks of keys, so that SHARE of them is "
        "computed; the first fifth of the steps and the first block stay dense and "
        "count too (1)",
    )


def _number_or_all(word: str) -> int | None:
    """A number of blocks, or None for "all"."""
    return None if word == "all" else _numbers.whole(1, _numbers.MAX_STEPS)(word)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from sixbit_jax.recipes import recipe_of

    recipe = None if args.recipe is None else recipe_of(args.recipe)
    _check(args)
    options = _options(args)
    captions = () if args.captions else _inputs.calibration_prompts(args.prompts)
    prompts = _inputs.read_prompts(args, captions)
    conditions = read_conditions(args, rows=len(prompts.names))
    models = _inputs.load_models(args, recipe=recipe, second_guidance=args.guidance_2)
    runs = runs_of(args, models.quantized, prompts, conditions)
    if recipe is not None and recipe.name == SWITCHING:
        return _switch_bits(args, recipe, runs)
    return _calibrate(args, options, runs)


def runs_of(
    args: argparse.Namespace,
    network: Network,
    prompts: _inputs.Prompts,
    conditions: dict[str, Any],
) -> Any:
    """What is sampled."""
    from sixbit_jax.calibration import CalibrationRuns
    from sixbit_jax.sampling.options import Execution, Guidance

    chosen = settings_for(
        args,
        network,
        size=asked_size(args),
        captions=prompts.captions,
        as_given=args.as_given,
    )
    return CalibrationRuns(
        network.model,
        chosen.scheduler,
        prompts.embeds,
        prompts.negative if chosen.guided else None,
        latent_shape=chosen.latent_shape,
        num_steps=chosen.num_steps,
        guidance=Guidance(chosen.scale),
        conditions=network.conditions(conditions),
        execution=Execution(
            batched_guidance=args.batched_guidance,
            dtype=_shared.compute_dtype(args.dtype),
            cache_format=args.cache_format,
            attention=args.attention,
            progress=not args.quiet,
        ),
        seed=args.seed,
        as_given=chosen.as_given,
        prompt_fields=chosen_fields(prompts.fields, guided=chosen.guided),
    )


def _calibrate(args: argparse.Namespace, options: Any, runs: Any) -> int:
    from sixbit_jax.calibration import calibrate, plot_fit, save_policy

    found = calibrate(runs, options, say=_say)
    save_policy(found.policy, args.out)
    if args.plot is not None:
        with files.replaced_file(args.plot) as partial:
            plot_fit(found.recording, found.fit, partial)
    _print(found.policy, found.fit)
    print(f"{files.shown(args.out)}: for `sixbit sample --policy` and `sixbit compare`")
    return 0


def _switch_bits(args: argparse.Namespace, recipe: Any, runs: Any) -> int:
    """Finds delta of a recipe that switches bits, instead of threshold and tau."""
    from sixbit_jax.calibration import calibrate_switching, save_policy
    from sixbit_jax.report.tables import facts_table, print_table

    policy = calibrate_switching(
        runs.with_execution(arq_block=recipe.arq_block),
        bits=args.bits,
        routes=recipe.routes,
        make_policy=lambda delta: recipe.policy(runs.model, delta=delta),
        notes={"recipe": recipe.name},
        say=_say,
    )
    save_policy(policy, args.out)
    reached = policy.calibration["activation_bits"]
    facts = {
        "delta": f"{policy.delta:.5g}",
        "activation bits": f"{reached:.2f} (target {args.bits})",
        "routes": f"{policy.low}, {policy.high}",
    }
    print_table(facts_table(facts))
    print(
        f"{files.shown(args.out)}: for `sixbit sample --recipe {recipe.name} --policy` "
        "and `compare`"
    )
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    problems = []
    try:
        check_targets(
            {"--out": args.out, "--plot": args.plot},
            inputs=(
                args.model,
                args.quantized_model,
                args.prompt_embeds,
                *condition_files(args),
            ),
        )
    except files.DestinationError as error:
        problems.append(str(error))
    if not 0.0 <= args.skips < 1.0:
        problems.append(f"--skips: expected 0 to 1, found {args.skips}")
    if args.max_drift is not None and not args.max_drift > 0:
        problems.append(f"--max-drift: expected more than 0, found {args.max_drift}")
    shares = {
        "--int8-attention": args.int8_attention,
        "--attention-share": args.attention_share,
    }
    given = {name: share for name, share in shares.items() if share is not None}
    problems += [
        f"{name}: expected above 0 to 1, found {share}"
        for name, share in given.items()
        if not 0.0 < share <= 1.0
    ]
    if args.steps is not None and args.steps < 2:
        problems.append(f"--steps: expected at least 2, found {args.steps}")
    if args.recipe == SWITCHING:
        if args.plot is not None:
            problems.append(f"--plot: expected none with --recipe {SWITCHING}")
        problems += [
            f"{name}: expected none with --recipe {SWITCHING}, found {share}"
            for name, share in given.items()
        ]
    if problems:
        raise ValueError("\n  ".join(problems))


def _options(args: argparse.Namespace) -> Any:
    from sixbit_jax.calibration import CalibrationOptions

    return CalibrationOptions(
        bits=args.bits,
        skips=args.skips,
        max_drift=args.max_drift,
        search_prompts=args.search_prompts,
        shared=args.shared,
        residual=args.residual,
        purify=not args.no_purify,
        refresh_int8=not args.no_refresh_int8,
        int8_attention=args.int8_attention,
        attention_share=args.attention_share,
        **{name: vars(args)[name] for name in _OF_POLICIES if name in args},
    )


def _print(policy: Any, fit: Any) -> None:
    from sixbit_jax.report.tables import facts_table, print_table, table

    rows = [
        [
            site,
            f"{values['pearson']:.3f}",
            f"{values['pearson_within_blocks']:.3f}",
            f"{values['r_squared']:.3f}",
            f"{values['r_squared_without_gamma']:.3f}",
            f"{values['pairs']:,}",
        ]
        for site, values in fit.summary().items()
    ]
    columns = ["site", "Pearson r", "r within blocks (median)", "R² of the predictor"]
    columns += ["R² without gamma", "pairs"]
    title = "gamma of the step before against the NVFP4 error"
    print_table(table(columns, rows, title=title))
    notes = policy.calibration
    facts = {
        "threshold": f"{policy.threshold:.5g}",
        "activation bits": f"{notes['activation_bits']:.2f} "
        f"(target {notes['target_bits']})",
        "tau": "no delta cache" if policy.tau is None else f"{policy.tau:.5g}",
        "blocks skipped": f"{100 * notes['skip_fraction']:.1f} %",
        "drift": f"{notes['drift']:.4f} (relative L2 of the latents)",
    }
    if policy.attention_max_gamma is not None:
        facts["8-bit attention"] = f"gamma up to {policy.attention_max_gamma:.5g}"
    if policy.sparse_way is not None:
        facts["sparse attention"] = (
            f"tau {policy.sparse_tau:.5g}: {100 * notes['density']:.1f} % of the keys "
            f"(target {100 * notes['target_attention_share']:.1f} %)"
        )
    print_table(facts_table(facts))
