"""Hooks of mkdocs for `make docs`: the site has the repository's own pages, at their own paths, and the API pages.

mkdocs reads one folder of pages. The pages here lie next to what they describe and link to each other by relative
paths, so the site keeps these paths, and the same Markdown works in both places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/*.png",
    "docs/*.css",
    "configs/neox_arguments.md",
    "benchmarks/results.md",
    "mup/README.md",
)
LINKED = ("CITATION.cff", "configs/*.yml", "mup/examples/*.py", "examples/*")  # files that the pages link to

API = {
    "mup": ("shape", "layer", "init", "optim", "groups", "schedule", "coord_check", "slopes", "static_audit", "roles",
            "rules", "bsh"),
    "muneox.runs": ("sources", "run", "align"),
    "muneox.scaling": ("ladder", "forecast", "power_law", "surface", "annealing", "backtest"),
    "megatron": ("neox_arguments.arguments", "training.main", "training.trainer", "audit.run", "monitoring.base",
                 "parametrization.plan", "gpt_neox"),
}  # fmt: skip
"""Page of the API -> the modules of that package that it describes."""


def on_files(files: Files, config: Any) -> Files:
    """Replace the pages of docs/ by those of the whole repository, and add one API page for each package."""
    kept = [file for file in files if file.src_dir != config.docs_dir]  # those of the theme
    found = [path for pattern in (*PAGES, *LINKED) for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    for path in found:
        kept.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for package, modules in API.items():
        text = f"# {package}\n\n" + "\n".join(f"::: {package}.{module}\n" for module in modules)
        kept.append(File.generated(config, f"api/{package}.md", content=text))
    return Files(kept)
