"""Export a finished run: `python export.py run=logs/RUN`; `--help` lists the files that it writes."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vaelab import checks, cli
from vaelab.errors import UserError


def export(cfg: DictConfig, _: Path) -> None:
    """Write the weights, the config, the ONNX graphs, the model card and perhaps a page of a run to one folder."""
    import torch

    from vaelab import export as exports
    from vaelab import runs
    from vaelab.interfaces import code_prior

    torch.distributions.Distribution.set_default_validate_args(False)  # its checks cannot be traced
    if not isinstance(cfg.run, str) or not cfg.run:
        raise UserError(f"run={cfg.run}: the folder of a finished run is needed, such as run=logs/RUN")
    run = Path(cfg.run).expanduser()
    checks.one_of((True, False), page=cfg.page)
    if cfg.data.root is not None and not cfg.page:
        raise UserError(f"data.root={cfg.data.root} changes nothing without page=true: only the page shows test images")
    output = Path(str(cfg.output or run / "export")).expanduser()
    exports.check(output)
    data = None
    if cfg.page:  # it shows test images
        opened = runs.open_run(cfg.run, cfg.data.root, "cpu", trust=cfg.trust)
        model, data = opened.model, opened.data
        exports.check_page(model)
    else:
        model = runs.load_run(run, cfg.trust)
    config: Any = OmegaConf.to_container(runs.read_config(run, trust=cfg.trust))
    private = {"root": "data", "path": "images.npz"}  # names of local folders stay private
    config["data"] |= {key: name for key, name in private.items() if key in config["data"]}
    config["resume"] = None

    print(f"exporting {runs.shown(run)}, {type(model).__name__}", flush=True)
    graphs = exports.graphs(model)
    page = {"page.html": exports.page(model, data, graphs, config.get("name", "model"))} if data else {}
    prior = run / runs.PRIOR
    files = {
        "model.safetensors": exports.weights(model),
        **({runs.PRIOR: prior.read_bytes()} if code_prior(model) else {}),
        **{name: graph.content for name, graph in graphs.items()},
        **exports.pictures(run),
        **page,
        "README.md": exports.card(run, config, model, graphs, bool(page)).encode(),
        "config.json": json.dumps(config, indent=2, ensure_ascii=False).encode(),
    }
    removes_page = (output / "page.html").exists() and not page
    exports.write(output, files)
    if removes_page:
        print("removed the page.html of an earlier export: page=true writes a new one")
    for name, content in files.items():
        print(f"{len(content) / 1e3:8,.0f} kB  {runs.shown(output / name)}")
    for name, graph in graphs.items():
        print(f"{name} differs from torch by {graph.difference:.1e} at most, in batches of 1 and 7")
    for name, why in (("encoder.onnx", exports.NO_MEAN), ("decoder.onnx", exports.NO_IMAGE)):
        if name not in graphs:
            print(f"no {name}: {why}")


if __name__ == "__main__":
    cli.main(export, Path(__file__).parent / "configs", "export")
