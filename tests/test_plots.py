"""The figures hold what was computed: data in the artists, captions, sides and aspect."""

from __future__ import annotations

import inspect
import io
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from helpers.figures import plots
from helpers.scores import metrics
from helpers.scores.metrics import Interval

CAPTION = "synthetic phantom"


def texts(axis):
    return [text.get_text() for text in axis.texts]


def visible(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


@pytest.fixture
def cohort():
    rng = np.random.default_rng(0)
    n = 60
    return pd.DataFrame(
        {
            "category": np.repeat(["CT-0", "CT-2", "CT-3"], [30, 20, 10]),
            "part": np.tile(["train", "train", "train", "validation", "test"], 12),
            "n_slices": rng.integers(33, 54, n),
            "spacing_z": np.where(np.arange(n) % 2, 8.0, 5.0),
            "spacing_x": rng.uniform(0.58, 1.15, n),
        }
    )


@pytest.fixture
def predictions():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 20)
    return labels, 1 / (1 + np.exp(-rng.normal(size=40) - 2 * labels + 1))


def every_figure(cohort, predictions):
    labels, scores = predictions
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train_loss": [0.7, 0.4, 0.1],
            "validation_loss": [0.7, 0.5, 0.6],
            "validation_auc": [0.6, 0.8, 0.9],
            "learning_rate": [1e-3, 5e-4, 1e-4],
        }
    )
    rows = pd.DataFrame({"row": [0], "study": ["s"], "label": [1], "probability": [0.1]})
    volumes = np.zeros((1, 9, 8, 8), dtype=np.uint8)
    yield plots.show_slices([np.zeros((8, 8))] * 5, caption=CAPTION)
    yield plots.class_balance(cohort, CAPTION)
    yield plots.geometry(cohort, CAPTION)
    yield plots.split_overview(cohort, CAPTION)
    yield plots.roc_and_pr({"model": (labels, scores)}, n_resamples=20, caption=CAPTION)
    yield plots.reliability_diagram(labels, scores, caption=CAPTION)
    yield plots.confusion_matrix(labels, scores > 0.5, caption=CAPTION)
    yield plots.threshold(labels, scores, 0.5, caption=CAPTION)
    yield plots.training_curves(history, CAPTION)
    yield plots.intervals({"a": {"auc": Interval(0.8, 0.7, 0.9)}}, caption=CAPTION)
    yield plots.failures_gallery(volumes, rows.assign(slice=4), caption=CAPTION)
    yield plots.attention_strip(np.full(9, 1 / 9), caption=CAPTION)


@pytest.mark.filterwarnings("error")
def test_every_figure_has_its_caption_fits_a_page_and_shows_itself(cohort, predictions):
    for figure in every_figure(cohort, predictions):
        assert figure.get_supxlabel() == CAPTION
        picture = Image.open(io.BytesIO(figure._repr_png_()[0]))
        assert picture.width <= 940 and picture.height <= 900
        assert np.ptp(np.asarray(picture.convert("L"))) > 100
        box, page = figure.get_tightbbox(), figure.bbox_inches
        assert box.x0 > -0.1 and box.y0 > -0.1, "something is cut off at the left or below"
        assert box.x1 < page.x1 + 0.1 and box.y1 < page.y1 + 0.1, "cut off at the right or top"


def test_without_a_caption_there_is_none(cohort):
    assert plots.class_balance(cohort).get_supxlabel() == ""


def test_style_is_readable_and_colour_blind_safe():
    with mpl.rc_context():
        mpl.rcParams["font.size"] = 3
        plots.use_course_style()
        assert mpl.rcParams["font.size"] >= 9 and mpl.rcParams["axes.grid"]
        colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    assert colours[:3] == ["#0072B2", "#D55E00", "#009E73"] and len(set(colours)) == len(colours)


def test_slices_in_mm_keep_their_shape_their_window_and_their_sides():
    slices = [np.arange(20.0).reshape(4, 5), np.ones((4, 5))]
    spacing = (8.0, 2.0, 0.5)
    figure = plots.show_slices(slices, ["CT-23", "CT-0"], spacing, (-1000, 400))
    for axis, picture, title in zip(figure.axes, slices, ("CT-23", "CT-0"), strict=True):
        image = axis.images[0]
        assert np.array_equal(image.get_array(), picture)
        assert image.get_extent() == [0, 2.5, 8, 0]
        assert image.get_clim() == (-1000, 400)
        assert image.get_cmap().name == "gray"
        assert axis.get_aspect() == 1
        assert axis.get_title() == f"{title}\n\N{MINUS SIGN}1000 to 400 HU"
        right, left = axis.texts
        assert (right.get_text(), left.get_text()) == ("R", "L")
        assert right.get_position()[0] < 0.1 and left.get_position()[0] > 0.9
        assert axis.get_xlabel() == "mm" and axis.yaxis_inverted()


def test_the_patients_right_is_at_the_images_left():
    picture = np.zeros((10, 10))
    picture[:, 0] = 1
    axis = plots.show_slices([picture]).axes[0]
    column = axis.transData.transform((0.5, 5))[0]
    assert column < axis.transAxes.transform((0.5, 0.5))[0]
    assert axis.texts[0].get_text() == "R"


def test_slices_without_spacing_have_no_axes():
    figure = plots.show_slices([np.zeros((6, 6))] * 5, columns=3)
    assert [axis.get_title() for axis in figure.axes] == [""] * 5
    assert all(len(axis.get_xticks()) == 0 and not axis.get_xlabel() for axis in figure.axes)
    rows = {round(axis.get_position().y0, 2) for axis in figure.axes}
    assert len(rows) == 2


def test_class_balance_counts(cohort):
    axis = plots.class_balance(cohort).axes[0]
    assert [bar.get_height() for bar in axis.patches] == [30, 20, 10]
    assert texts(axis) == ["30\n50 %", "20\n33 %", "10\n17 %"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["CT-0", "CT-2", "CT-3"]
    assert len({to_hex(bar.get_facecolor()) for bar in axis.patches}) == 3


def test_geometry_shows_every_study_and_the_medians(cohort):
    figure = plots.geometry(cohort)
    height = cohort.n_slices * cohort.spacing_z
    columns = (cohort.n_slices, height, cohort.spacing_x)
    for axis, values in zip(figure.axes, columns, strict=True):
        for k, category in enumerate(("CT-0", "CT-2", "CT-3")):
            points, median = axis.collections[2 * k : 2 * k + 2]
            mine = values[cohort.category == category].to_numpy()
            offsets = points.get_offsets()
            assert np.asarray(offsets[:, 0]) == pytest.approx(mine)
            assert (np.abs(offsets[:, 1] - k) < 0.4).all()
            assert median.get_segments()[0][0, 0] == pytest.approx(np.median(mine))
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "slices",
        "height in mm",
        "pixel size in mm",
    ]


def test_split_overview_stacks_the_counts(cohort):
    axis = plots.split_overview(cohort).axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["test (12)", "validation (12)", "train (36)"]
    expected = pd.crosstab(cohort.part, cohort.category).loc[["test", "validation", "train"]]
    for bars, category in zip(axis.containers[::1], expected, strict=True):
        assert bars.get_label() == category
        assert [bar.get_width() for bar in bars] == list(expected[category])
    ends = [bar.get_x() + bar.get_width() for bar in axis.containers[-1]]
    assert ends == [12, 12, 36]


def test_split_overview_leaves_no_number_where_it_cannot_be_read():
    table = pd.DataFrame({"part": "train", "category": ["CT-0"] * 99 + ["CT-4"]})
    assert texts(plots.split_overview(table).axes[0]) == ["99", ""]


def test_roc_and_pr_draw_the_curves_that_were_computed(predictions):
    labels, scores = predictions
    models = {"Bi-LSTM": (labels, scores), "histogram": (labels, scores[::-1])}
    figure = plots.roc_and_pr(models, n_resamples=50, seed=3)
    for axis, kind in zip(figure.axes, ("roc", "pr"), strict=True):
        for k, (labels_k, scores_k) in enumerate(models.values()):
            grid, curve, low, high = metrics.curve_bands(labels_k, scores_k, kind, 50, 3)
            assert np.array_equal(axis.lines[k].get_xdata(), grid)
            assert np.array_equal(axis.lines[k].get_ydata(), curve)
            corners = axis.collections[k].get_paths()[0].vertices
            at = np.isclose(corners[:, 0], grid[30])
            assert np.ptp(corners[at, 1]) == pytest.approx(high[30] - low[30])
        assert axis.get_aspect() == 1
    roc_legend, pr_legend = (axis.get_legend().get_texts() for axis in figure.axes)
    area = metrics.auc_interval(labels, scores)
    assert roc_legend[0].get_text() == f"Bi-LSTM: {area}"
    precision = metrics.average_precision_interval(labels, scores)
    assert pr_legend[0].get_text() == f"Bi-LSTM: {precision}"
    assert list(figure.axes[1].lines[-1].get_ydata()) == [0.5, 0.5]


def test_the_legend_says_what_the_table_says(predictions):
    labels, scores = predictions
    patients = np.arange(40) // 2
    legends = plots.roc_and_pr({"model": predictions}, patients).axes
    evaluated = metrics.evaluate(labels, scores, 0.5, patients)
    table = metrics.comparison_table({"model": (labels, scores, 0.5)}, patients)
    for axis, name in zip(legends, ("auc", "average_precision"), strict=True):
        [words] = axis.get_legend().get_texts()
        assert words.get_text() == f"model: {evaluated[name]}"
        assert table.loc["model", name.replace("_", " ")] == str(evaluated[name])
    functions = plots.roc_and_pr, metrics.evaluate, metrics.comparison_table, metrics.curve_bands
    for function in (*functions, metrics.bootstrap):
        defaults = inspect.signature(function).parameters
        assert (defaults["n_resamples"].default, defaults["seed"].default) == (2000, 0)


def test_reliability_diagram_draws_the_bins_and_their_intervals(predictions):
    labels, scores = predictions
    axis = plots.reliability_diagram(labels, scores).axes[0]
    bins = metrics.reliability(labels, scores)
    line, _, (bars,) = axis.containers[0]
    assert line.get_xdata() == pytest.approx(bins.predicted)
    assert line.get_ydata() == pytest.approx(bins.observed)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert ends == pytest.approx(bins[["low", "high"]].to_numpy())
    assert axis.get_title() == f"Brier score {metrics.brier(labels, scores):.3f}"
    assert axis.get_xlabel() == "predicted probability\n(bins of 8, 8, 8, 8, 8 studies)"


def test_reliability_diagram_of_bins_that_lie_close_can_be_read():
    probabilities = 0.97 + np.arange(999) * 1e-5
    figure = plots.reliability_diagram(np.arange(999) % 7 > 0, probabilities)
    [axis] = figure.axes
    assert not axis.texts and "(bins of 200, 200, 199, 200, 200 studies)" in axis.get_xlabel()
    assert figure.get_tightbbox().x0 > -0.1 and figure.get_tightbbox().x1 < 5.1


def test_confusion_matrix_counts_by_truth_and_call():
    labels, called = [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0, 1]
    axis = plots.confusion_matrix(labels, called).axes[0]
    at = {tuple(text.get_position()): text.get_text() for text in axis.texts}
    # x is the call, y the truth
    assert at == {(0, 0): "3\n75 %", (1, 0): "1\n25 %", (0, 1): "2\n67 %", (1, 1): "1\n33 %"}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "truth")
    assert axis.get_yticklabels()[1].get_text() == "COVID"
    assert axis.images[0].get_array().tolist() == [[0.75, 0.25], [2 / 3, 1 / 3]]
    nobody = plots.confusion_matrix([1, 1], [0, 1]).axes[0]
    assert [text.get_text() for text in nobody.texts][:2] == ["0\n0 %", "0\n0 %"]


def test_threshold_draws_scores_calls_and_the_point_on_the_curve():
    labels, scores = [0, 0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.5, 0.6, 0.4, 0.5, 0.9]
    figure = plots.threshold(labels, scores, 0.5)
    left, middle, right = figure.axes
    line, healthy, ill = left.lines[0], *left.patches
    assert line.get_xdata() == [0.5, 0.5] and line.get_label() == "threshold"
    assert [healthy.get_label(), ill.get_label()] == ["healthy", "ill"]
    assert ill.get_xy()[:, 0].min() < 0.45 < 0.85 < ill.get_xy()[:, 0].max()
    at = {tuple(text.get_position()): text.get_text().split("\n")[0] for text in middle.texts}
    assert at == {(0, 0): "2", (1, 0): "2", (0, 1): "1", (1, 1): "2"}
    curve, _, point = right.lines
    assert point.get_xdata() == [0.5] and point.get_ydata() == [pytest.approx(2 / 3)]
    assert [0.5, pytest.approx(2 / 3)] in curve.get_xydata().tolist()
    area = metrics.auc(labels, scores)
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(area)
    assert right.get_title() == f"AUC {area:.2f}"
    words = "Threshold 0.50: 2 of 3 ill are called, sensitivity 0.67; "
    words += "2 of 4 healthy are not, specificity 0.50"
    assert plots.alternative_text(figure) == words
    everybody = plots.threshold(labels, scores, 0.1).axes[2].lines[2]
    assert everybody.get_xydata().tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="one class"):
        plots.threshold([1, 1], [0.1, 0.2], 0.5)


def test_threshold_takes_columns_of_a_table_with_any_index():
    table = pd.DataFrame({"label": [0, 1, 0, 1], "score": [0.1, 0.9, 0.6, 0.7]}, [7, 3, 9, 1])
    shown = plots.threshold(table.label, table.score, 0.65)
    assert shown.get_label().startswith("Threshold 0.65: 2 of 2 ill")


def test_training_curves_draw_the_history_and_mark_the_best_epoch(cohort, predictions):
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "train_loss": [0.7, 0.4, 0.2, 0.1],
            "validation_loss": [0.7, 0.5, 0.4, 0.6],
            "validation_auc": [0.3, 0.8, 0.9, 0.9],
            "learning_rate": [1e-3, 5e-4, 2e-4, 1e-4],
        }
    )
    losses, area, rate = plots.training_curves(history).axes
    assert [line.get_label() for line in losses.lines[:2]] == ["train", "validation"]
    for line, name in (
        (losses.lines[0], "train_loss"),
        (losses.lines[1], "validation_loss"),
        (area.lines[0], "validation_auc"),
        (rate.lines[0], "learning_rate"),
    ):
        assert list(line.get_xdata()) == [1, 2, 3, 4]
        assert list(line.get_ydata()) == list(history[name])
    assert all(list(axis.lines[-1].get_xdata()) == [3, 3] for axis in (losses, area, rate))
    assert area.get_ylim()[0] < 0.3
    titles = [axis.get_title() for axis in (losses, area, rate)]
    assert titles == ["loss", "validation AUC", "learning rate"]


def test_intervals_draw_each_model_in_each_panel():
    scores = {
        "first": {"auc": Interval(0.9, 0.8, 0.95), "balanced_accuracy": Interval(0.7, 0.6, 0.8)},
        "second": {"auc": Interval(0.6, 0.4, 0.7), "balanced_accuracy": Interval(0.5, 0.5, 0.5)},
    }
    metrics = ("auc", "balanced_accuracy")
    figure = plots.intervals(scores, metrics, chance={"auc": 0.5})
    for axis, metric in zip(figure.axes, metrics, strict=True):
        for k, model in enumerate(scores):
            segment = axis.collections[k].get_segments()[0]
            assert segment.tolist() == [
                [scores[model][metric].low, k],
                [scores[model][metric].high, k],
            ]
            assert list(axis.lines[k].get_xdata()) == [scores[model][metric].value]
            assert texts(axis)[k] == str(scores[model][metric])
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["first", "second"]
    assert first.yaxis_inverted(), "the first model stands on top"
    assert (first.get_title(), second.get_title()) == ("AUC", "balanced accuracy")
    assert (len(first.lines), len(second.lines)) == (3, 2)


def gallery_rows():
    return pd.DataFrame(
        {
            "row": [2, 0, 1, 3],
            "study": ["small miss", "large miss", "right", "false alarm"],
            "label": [1, 1, 0, 0],
            "probability": [0.4, 0.05, 0.2, 0.8],
            "slice": [10, 15, 15, 0],
        },
        index=[7, 7, 8, 9],
    )


def test_failures_gallery_shows_the_worst_first_around_their_slice():
    volumes = np.zeros((4, 30, 8, 8), dtype=np.uint8)
    volumes[:] = np.arange(30)[None, :, None, None] + 50 * np.arange(4)[:, None, None, None]
    figure = plots.failures_gallery(volumes, gallery_rows())
    lines = np.array(figure.axes, dtype=object).reshape(3, 5)
    titles = [line[2].get_title() for line in lines]
    assert titles == [
        "large miss: COVID, p = 0.05\nslice 15",
        "false alarm: no COVID, p = 0.80\nslice 0",
        "small miss: COVID, p = 0.40\nslice 10",
    ]
    shown = [int(axis.images[0].get_array()[0, 0]) for axis in lines[0]]
    assert shown == [11, 13, 15, 17, 19]
    assert int(lines[2][2].images[0].get_array()[0, 0]) == 110
    assert all(axis.images[0].get_clim() == (0, 255) for axis in lines[0])
    assert all(texts(axis) == ["R", "L"] for axis in lines[0])
    # below the first slice there is nothing to show
    assert [axis.get_visible() for axis in lines[1]] == [False, False, True, True, True]


def test_failures_gallery_follows_the_threshold_and_may_be_empty():
    volumes = np.zeros((4, 30, 8, 8), dtype=np.uint8)
    figure = plots.failures_gallery(volumes, gallery_rows(), n=1)
    assert len(figure.axes) == 5 and "large miss" in figure.axes[2].get_title()
    figure = plots.failures_gallery(volumes, gallery_rows(), threshold=0.3)
    titles = [axis.get_title() for axis in visible(figure)]
    assert len(figure.axes) == 10 and not any("small miss" in title for title in titles)
    right = gallery_rows().iloc[[2]]
    empty = plots.failures_gallery(volumes, right)
    assert not visible(empty) and empty.get_suptitle() == "no wrong calls"


def test_attention_strip_draws_a_bar_a_slice_and_shades_the_lesion():
    attention = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    axis = plots.attention_strip(attention, lesion=[0, 0, 120, 30, 0], title="study").axes[0]
    shade, bars = axis.containers
    assert [bar.get_height() for bar in bars] == pytest.approx(list(attention))
    centres = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert centres == pytest.approx(range(5))
    assert [bar.get_x() + 0.5 for bar in shade] == pytest.approx([2, 3])
    assert list(axis.lines[0].get_ydata()) == [0.2, 0.2]
    assert len(plots.attention_strip(attention).axes[0].containers) == 1


def test_marks_can_be_left_out_where_they_would_be_wrong():
    colour = np.zeros((8, 10, 3))
    figure = plots.show_slices([colour, np.zeros((8, 10))], marks=[False, True])
    marked = [{text.get_text() for text in axis.texts} for axis in figure.axes]
    assert marked == [set(), {"R", "L"}]


def test_live_curve_updates_one_picture_in_a_notebook_and_is_silent_elsewhere(monkeypatch):
    shown, updated = [], []

    def display(figure, display_id):
        shown.append(figure)
        return SimpleNamespace(update=updated.append)

    monkeypatch.setattr(plots, "training_curves", len)
    monkeypatch.setattr(plots, "display", display)
    plots.LiveCurve()([1])
    assert not shown
    monkeypatch.setattr(plots, "get_ipython", lambda: SimpleNamespace(kernel=1))
    curve = plots.LiveCurve(every=2)
    for n in range(1, 7):
        curve([0] * n)
    assert (shown, updated) == ([2], [4, 6])


def test_the_alternative_text_says_what_is_written_on_a_figure():
    each = {"ours": (0.9, 0.8, 1.0), "theirs": (0.5, 0.4, 0.6)}
    scores = {name: {"auc": metrics.Interval(*values)} for name, values in each.items()}
    words = plots.alternative_text(plots.intervals(scores, caption="Synthetic."))
    assert words == "AUC: ours 0.90 [0.80, 1.00], theirs 0.50 [0.40, 0.60]; Synthetic."
    counts = plots.confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert plots.alternative_text(counts) == (
        "picture: truth against predicted: 1 100 %, 0 0 %, 1 50 %, 1 50 %"
    )
    slices = plots.show_slices([np.eye(4)] * 2, ["low", "high"], caption="Synthetic.")
    assert plots.alternative_text(slices) == "low; high; Synthetic."
    slices.set_label("Two slices.")
    assert plots.alternative_text(slices) == "Two slices."
