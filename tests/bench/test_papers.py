from __future__ import annotations

from decimal import Decimal

import pytest

from modelaudit.bench.papers import NO_ATTACK, Papers, RepairFigure, read_papers


@pytest.fixture(scope="module")
def papers() -> Papers:
    return read_papers()


@pytest.mark.parametrize(
    ("scanner", "attack", "architecture", "dataset", "flagged", "models", "accuracy"),
    [
        # BAN, Table 1
        ("ban", ("blend", "one"), "cifar_resnet18", "cifar10", 18, 20, "90"),
        ("ban", ("blend", "one"), "cifar_vgg16", "cifar10", 17, 20, "85"),
        ("ban", ("iad", "one"), "cifar_densenet121", "cifar10", 19, 20, "95"),
        ("ban", NO_ATTACK, "cifar_vgg16", "cifar10", 0, 20, "100"),
        ("neural_cleanse", ("bpp", "one"), "cifar_vgg16", "cifar10", 9, 20, "45"),
        ("tabor", ("wanet", "one"), "cifar_densenet121", "cifar10", 10, 20, "50"),
        ("unicorn", NO_ATTACK, "cifar_densenet121", "cifar10", 8, 20, "60"),
        ("feature_re", ("bpp", "one"), "cifar_vgg16", "cifar10", 5, 20, "25"),
        ("bti_dbf_star", NO_ATTACK, "cifar_densenet121", "cifar10", 3, 20, "85"),
        # Table 2
        ("bti_dbf", ("wanet", "one"), "cifar_resnet18", "cifar10", 7, 20, "35"),
        # Table 6: the text says Adap-Blend, the table Adap-Patch
        ("tabor", ("adap_patch", "one"), "cifar_resnet18", "cifar10", 15, 20, "75"),
        ("tabor", ("adap_blend", "one"), "cifar_resnet18", "cifar10", 15, 20, "75"),
        ("ban", ("ssdt", "one"), "cifar_resnet18", "cifar10", 20, 20, "100"),
        # Table 8
        ("bti_dbf", NO_ATTACK, "cifar_resnet18", "imagenet200", 3, 10, "70"),
        ("bti_dbf", ("wanet", "one"), "cifar_resnet18", "tiny_imagenet", 4, 10, "40"),
        # Table 9
        ("bti_dbf_star", ("bpp", "one"), "cifar_resnet18", "gtsrb", 14, 20, "70"),
        ("neural_cleanse", ("wanet", "one"), "cifar_resnet18", "gtsrb", 8, 20, "40"),
    ],
)
def test_detection_figures_are_those_of_the_paper(
    papers: Papers,
    scanner: str,
    attack: tuple[str, str],
    architecture: str,
    dataset: str,
    flagged: int,
    models: int,
    accuracy: str,
) -> None:
    figure = papers.detection_of(
        scanner=scanner, attack=attack, architecture=architecture, dataset=dataset
    )

    assert figure is not None
    assert (figure.flagged, figure.models, str(figure.accuracy)) == (flagged, models, accuracy)


def test_an_unknown_cell_has_no_figure(papers: Papers) -> None:
    assert (
        papers.detection_of(
            scanner="ban", attack=("sig", "one"), architecture="cifar_resnet18", dataset="cifar10"
        )
        is None
    )


def test_every_printed_accuracy_is_flagged_over_models(papers: Papers) -> None:
    for attack, _, _, figure in papers.detection:
        share = Decimal(100 * figure.flagged) / figure.models
        assert figure.accuracy == (100 - share if attack == NO_ATTACK else share), figure


def test_the_averages_are_the_means_of_their_columns(papers: Papers) -> None:
    assert {(scanner, str(a.accuracy)) for scanner, a in papers.averages} >= {
        ("ban", "97.22"),
        ("neural_cleanse", "60.56"),
    }
    for _, average in papers.averages:
        column = [
            figure.accuracy
            for _, _, _, figure in papers.detection
            if (figure.table, figure.column) == (average.table, average.column)
        ]
        assert len(column) == 18
        assert abs(sum(column) / 18 - average.accuracy) < Decimal("0.0051")


def cell(
    papers: Papers,
    repair: str,
    attack: tuple[str, str],
    paper: str,
    table: str,
    *,
    dataset: str = "cifar10",
    architecture: str = "cifar_resnet18",
) -> list[RepairFigure]:
    return [
        figure
        for figure in papers.repairs_of(
            repair=repair, attack=attack, architecture=architecture, dataset=dataset
        )
        if (figure.paper, figure.table) == (paper, table)
    ]


@pytest.mark.parametrize(
    ("repair", "attack", "paper", "table", "acc", "asr"),
    [
        ("finetune_noise", ("blend", "one"), "BAN24", "3", "92.72", "4.10"),
        ("finetune", ("badnets", "one"), "BAN24", "3", "92.93", "87.81"),
        ("flip_feature_re", ("bpp", "one"), "BAN24", "3", "94.21", "98.13"),
        ("unlearn_bti_dbf", ("blend", "one"), "BAN24", "3", "91.86", "100"),
        ("", ("iad", "one"), "BAN24", "3", "93.17", "97.88"),
        ("finetune_noise", ("bpp", "all"), "BAN24", "5", "93.23", "1.38"),
        ("finetune_noise", ("adap_blend", "one"), "BAN24", "10", "90.45", "10.24"),
        ("prune_anp", ("blend", "one"), "BAN24", "11", "94.17", "97.24"),
        ("finetune_noise", ("iad", "one"), "BAN24", "11", "92.36", "1.47"),
        ("fine_pruning", ("blend", "one"), "DDE22", "1", "70.92", "90.92"),
        ("prune_linf", ("badnets", "all"), "DDE22", "1", "93.67", "6.67"),
        ("nad", ("iad", "one"), "DDE22", "1", "92.11", "19.45"),
        ("prune_dde", ("refool", "one"), "DDE22", "1", "93.35", "8.90"),
        ("prune_mbns", ("clb", "one"), "DDE22", "1", "94.14", "7.03"),
        ("prune_anp", ("badnets", "all"), "DDE22", "1", "90.29", "86.22"),
    ],
)
def test_repair_figures_are_those_of_the_papers(
    papers: Papers,
    repair: str,
    attack: tuple[str, str],
    paper: str,
    table: str,
    acc: str,
    asr: str,
) -> None:
    (figure,) = cell(papers, repair, attack, paper, table)

    assert (str(figure.acc), str(figure.asr)) == (acc, asr)


def test_other_data_and_networks_have_figures_of_their_own(papers: Papers) -> None:
    (tiny,) = cell(papers, "prune_mbns", ("refool", "one"), "DDE22", "2", dataset="tiny_imagenet")
    assert (str(tiny.acc), str(tiny.asr)) == ("52.41", "23.79")
    (large,) = cell(papers, "finetune", ("bpp", "one"), "BAN24", "4", dataset="imagenet200")
    assert (str(large.acc), str(large.asr)) == ("70.89", "0.82")
    (wide,) = cell(
        papers,
        "prune_dde",
        ("blend", "one"),
        "DDE22",
        "appendix C",
        architecture="wide_resnet28",
    )
    assert (str(wide.acc), str(wide.asr)) == ("91.59", "6.40")


def test_the_rates_that_a_table_varies_are_kept(papers: Papers) -> None:
    rates = {
        str(f.poisoning_rate): (str(f.acc), str(f.asr))
        for f in cell(papers, "prune_dde", ("clb", "one"), "DDE22", "4")
    }
    assert rates == {
        "0.01": ("87.96", "0.65"),
        "0.05": ("94.43", "15.91"),
        "0.10": ("94.42", "0.91"),
    }


def test_anp_carries_its_deviations(papers: Papers) -> None:
    (tenth,) = cell(papers, "prune_anp", ("blend", "one"), "ANP21", "9")
    assert (str(tenth.acc), str(tenth.asr)) == ("88.12", "5.70")
    assert (str(tenth.acc_deviation), str(tenth.asr_deviation)) == ("0.38", "8.87")
    assert str(tenth.clean_fraction) == "0.001"
    one = cell(papers, "finetune", ("iad", "all"), "ANP21", "8")
    assert [(f.column, str(f.acc), str(f.asr)) for f in one] == [
        ("FT (0.01)", "89.06", "1.36"),
        ("FT (0.02)", "83.77", "1.83"),
    ]
    (mcr,) = cell(papers, "mcr", ("clb", "one"), "ANP21", "7")
    assert (str(mcr.acc), str(mcr.asr)) == ("89.78", "3.77")
    (before,) = cell(papers, "", ("iad", "all"), "ANP21", "7")
    assert (str(before.acc), str(before.asr), before.acc_deviation) == ("94.10", "92.88", None)


def test_the_means_of_the_repair_tables_are_those_printed(papers: Papers) -> None:
    # BAN's own means under Tables 3 and 5, typed from the text.
    for table, acc, asr in (("3", "92.43", "2.21"), ("5", "92.61", "1.21")):
        found = [
            f
            for _, own, _, f in papers.repair
            if (f.paper, f.table, own) == ("BAN24", table, "finetune_noise")
        ]
        assert len(found) == {"3": 5, "5": 3}[table]
        assert abs(sum(f.acc for f in found) / len(found) - Decimal(acc)) < Decimal("0.011")
        assert abs(sum(f.asr for f in found) / len(found) - Decimal(asr)) < Decimal("0.011")
