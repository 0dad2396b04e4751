"""Font faces that lines are printed in, all from installed packages with free licences.

matplotlib: DejaVu (Bitstream Vera licence), STIX (OFL); rendercv-fonts: OFL, but Roboto (Apache 2.0) and Ubuntu (Ubuntu
font licence); font-source-serif-pro: OFL. A family is either trained on or held out, never both.
"""

import importlib.util
from functools import cache
from pathlib import Path

from PIL import ImageFont

MATPLOTLIB, RENDERCV = ("matplotlib", "mpl-data/fonts/ttf"), ("rendercv_fonts", "")
SERIF_PRO = ("font_source_serif_pro", "files")
FOUR = ("Regular", "Bold", "Italic", "BoldItalic")
OBLIQUE = ("", "-Bold", "-Oblique", "-BoldOblique")

Face = tuple[str, str, str]
"""Package, folder in it, file."""


def _family(folder: str, prefix: str, weights: tuple[str, ...] = FOUR) -> list[Face]:
    return [(RENDERCV[0], folder, f"{prefix}-{weight}.ttf") for weight in weights]


SEEN: dict[str, list[Face]] = {
    "DejaVu Sans": [(*MATPLOTLIB, f"DejaVuSans{style}.ttf") for style in OBLIQUE],
    "DejaVu Sans Mono": [(*MATPLOTLIB, f"DejaVuSansMono{style}.ttf") for style in OBLIQUE],
    "DejaVu Serif": [(*MATPLOTLIB, f"DejaVuSerif{style}.ttf") for style in ("", "-Bold", "-Italic", "-BoldItalic")],
    "STIX": [(*MATPLOTLIB, f"STIXGeneral{style}.ttf") for style in ("", "Bol", "Italic", "BolIta")],
    "EB Garamond": _family("EB Garamond", "EBGaramond"),
    "Lato": _family("Lato", "Lato"),
    "Mukta": _family("Mukta", "Mukta", ("Regular", "Bold")),
    "Noto Sans": _family("Noto Sans", "NotoSans"),
    "Open Sans": _family("Open Sans", "OpenSans"),
    "Open Sauce Sans": _family("Open Sauce Sans", "OpenSauceSans"),
    "Poppins": _family("Poppins", "Poppins"),
    "Raleway": _family("Raleway", "Raleway"),
    "Source Sans": _family("Source Sans 3", "SourceSans3"),
    "Source Serif": [
        (*SERIF_PRO, f"SourceSerifPro-{weight}.ttf") for weight in ("Light", "Regular", "Bold", "Black", "It", "BoldIt")
    ],
}
HELD_OUT: dict[str, list[Face]] = {
    "Gentium Book": _family("Gentium Book Plus", "GentiumBookPlus"),
    "Roboto": _family("Roboto", "Roboto"),
    "Ubuntu": _family("Ubuntu", "Ubuntu"),
}


def path_of(face: Face) -> Path:
    """Where a face's file is. Raises FileNotFoundError naming the package to install."""
    package, folder, file = face
    spec = importlib.util.find_spec(package)
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / folder / file
    if path is None or not path.is_file():
        name = package.replace("_", "-")
        raise FileNotFoundError(f"{file} of {name} is not there: pip install -c constraints.txt -e '.[line-reader]'")
    return path


@cache
def load(face: Face, size: int) -> ImageFont.FreeTypeFont:
    """A face at a size in pixels. The simple layout makes the same pixels wherever FreeType is the same."""
    return ImageFont.truetype(path_of(face), size, layout_engine=ImageFont.Layout.BASIC)
