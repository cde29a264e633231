import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from hybrid.benchmarks.labels import round_numbers, write_beside


def boxes(marks):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    write_beside(axes, marks)
    figure.draw_without_rendering()
    return axes, [text.get_window_extent() for text in axes.texts]


def apart(one, other):
    return one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0


def test_a_lonely_label_stands_above_on_the_right():
    axes, (box,) = boxes([(5, 5, "8")])
    x, y = axes.transData.transform((5, 5))
    assert box.x0 > x and box.y0 > y


def test_labels_of_close_points_do_not_cover_each_other():
    marks = [(5, 5, "0.25 + 8"), (5.2, 5.1, "0.5 + 8"), (4.9, 4.8, "0.375 + 8")]
    axes, found = boxes(marks)
    assert [text.get_text() for text in axes.texts] == [text for _, _, text in marks]
    assert all(apart(one, other) for place, one in enumerate(found) for other in found[:place])


def test_a_label_at_the_edge_stays_inside():
    axes, (box,) = boxes([(9.9, 9.9, "relaxed 0.3")])
    inside = axes.get_window_extent()
    assert box.x1 <= inside.x1 and box.y1 <= inside.y1


def test_no_points_no_labels():
    assert boxes([])[1] == []


def test_round_numbers_are_a_few_whatever_the_span() -> None:
    assert round_numbers(0.012, 30) == [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
    assert round_numbers(0.09, 0.9) == [0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7]
    assert round_numbers(0.84, 1.65) == [0.9, 1.0, 1.2, 1.4, 1.6]
