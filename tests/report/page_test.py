"""The page is one sound file."""

from support.work_folders import Page


def test_page_is_one_sound_file(run):
    folder, _ = run
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.all("script") and not page.all("link")
    assert "url(" not in text and "@import" not in text
    for _, attributes in page.attributes:
        for name in ("src", "href"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:")
    images = page.all("img")
    assert len(images) == 2 and all(len(image["alt"]) > 20 for image in images)
    words = " ".join(page.text)
    for phrase in ("run small", "abc1234", "0.10.1", "Dual-task <TransGAN> | a&b"):
        assert phrase in words
    assert '"note": "<b>&"' in words and not page.all("b>&")
    assert "600" in words and "No training" not in words
    assert str(folder.parent) not in text
