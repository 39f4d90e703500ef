import html.parser
import json
import re

from training import report


class Outline(html.parser.HTMLParser):
    """Notes the elements of a page and checks that they are closed."""

    VOID = ("meta", "img", "input", "path", "use", "image", "circle", "line", "rect", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_one_page_that_needs_no_other_file(run_command, clip, tmp_path, capsys):
    out = tmp_path / "report.html"
    options = ["--short-side", "96", "--cache", tmp_path / "cache", "--out", out]
    assert run_command(report.main, clip, "--models", "pixels", "constant", *options) is None
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert all(link.startswith(("data:", "#")) for link in outline.links)
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)", text)
    frames = json.loads(re.search(r"const frames = (.*), times = ", text)[1])
    assert [len(film) for film in frames] == [20, 20, 20]
    assert "<b>constant</b> against <b>pixels</b>: no difference that this clip can tell" in text  # of 2.5 s
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)


def test_what_cannot_be_reported_is_one_sentence(run_command, clip, tmp_path):
    options = ["--models", "pixels", "--out", tmp_path / "report.html"]
    assert "does not exist" in run_command(report.main, tmp_path / "none.mp4", *options)
    assert "too short for a report" in run_command(report.main, clip, *options, "--seconds", "0.01")
    assert "--fps and --seconds must be positive" in run_command(report.main, clip, *options, "--fps", "0")
    assert not (tmp_path / "report.html").exists()


def test_a_report_is_of_one_recording_of_a_data_set(run_command, aloha, tmp_path):
    options = ["--models", "pixels", "--short-side", "64", "--out", tmp_path / "report.html", "--source-fps", "10"]
    options += ["--cache", tmp_path / "cache"]
    error = run_command(report.main, aloha, *options, "--cameras", "front")
    assert "holds 3 recordings, and a report is of one: choose it with --cameras and --episodes" in error
    assert run_command(report.main, aloha, *options, "--cameras", "front", "--episodes", "1:2") is None
    assert "fold/front/episode_1" in (tmp_path / "report.html").read_text()


def test_encoders_whose_folders_have_one_name_stay_two(run_command, clip, tmp_path):
    models = ["pixels", "random", "random:vit_tiny_patch16_224"]
    options = ["--short-side", "64", "--cache", tmp_path / "cache", "--out", tmp_path / "report.html"]
    assert run_command(report.main, clip, "--models", *models, *options) is None
    text = (tmp_path / "report.html").read_text()
    for model in models[1:]:
        assert f"<b>random ({model})</b> against <b>pixels</b>" in text
