"""A result for each model and each size, as a table and a plot."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .training import kept, settings


def sizes(text):
    """The option "20,40" as (20, 40)."""
    return tuple(int(part) for part in text.split(","))


def options(command, what, paper, arguments, rows):
    """Those of all sweeps and `rows`, which are as `settings` takes them."""
    parser = ArgumentParser(prog=f"python -m bench.experiments.{command}", description=what)
    parser.add_argument("directory", type=Path, help="where results are kept")
    parser.add_argument("--paper", action="store_true", help=paper)
    parser.add_argument("--only", default="", help="memories whose name contains this")
    return settings(parser, arguments, (*rows,
        ("width", int, 64, 64, "of keys"), ("steps", int, 5000, 100_000, "at most"), ("rate", float, 5e-3, 1e-3, "of Adam, at first"),
        ("every", int, 50, 100, "steps, judged"), ("enough", float, 1e-3, 1e-3, "a loss that ends training"),
        ("patience", int, 400, 1000, "steps without progress that end training"), ("seed", int, 0, 0, ""),
    ))  # fmt: skip


def results(o, names, train):
    """train(name, options with `size`), which returns a dict, for all names that --only leaves and all sizes; what is there is kept."""
    found = []
    for name in (name for name in names if o.only in name):
        for size in o.sizes:
            point = Namespace(**{k: v for k, v in vars(o).items() if k != "sizes"}, size=size)
            one = kept(point, f"{name} S {size}", lambda name=name, point=point: train(name, point))
            found.append({"model": name, "size": size} | one)
    return found


def report(o, results, stem, title, lines):
    """Prints and keeps the table, and keeps the plot. `lines`: name -> function of the size, what losses are compared with."""
    if not results:
        return
    text = table(o, results, title, lines)
    (o.directory / "table.txt").write_text(text + "\n")
    print(text)
    plot(o, results, lines, o.directory / f"{stem}.png")


def table(o, results, title, lines):
    rows = [f"{title:28s}" + "".join(f"{f'S={size}':>17s}" for size in o.sizes) + f"{'seconds':>9s}"]
    for name in dict.fromkeys(r["model"] for r in results):
        mine = [r for r in results if r["model"] == name]
        cells = "".join(f"{r['loss']:7.4f}{' ' if r['converged'] else '*'}({r['floor']:.4f})".rjust(17) for r in mine)
        rows.append(f"{name:28s}{cells}{sum(r['seconds'] for r in mine):9.0f}")
    rows += [
        f"{name:28s}" + "".join(f"{line(size):7.4f}".rjust(8) + " " * 9 for size in o.sizes)
        for name, line in lines.items()
    ]
    return "\n".join([*rows, "* cut off before it converged"])


def plot(o, results, lines, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for i, name in enumerate(dict.fromkeys(r["model"] for r in results)):
        mine = [r for r in results if r["model"] == name]
        axes.plot([r["size"] for r in mine], [r["loss"] for r in mine], "o-", color=f"C{i}", label=name)
        axes.plot([r["size"] for r in mine], [r["floor"] for r in mine], ":", color=f"C{i}")
    for name, line in lines.items():
        axes.plot(o.sizes, [line(size) for size in o.sizes], "--", color="grey", label=name)
    axes.set(xlabel="S", ylabel="mean loss of a query", title="dotted: the floor of each")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
