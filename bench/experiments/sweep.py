"""A result for each model and each size, as a table and a plot."""

from argparse import Namespace

from .training import kept


def sizes(text):
    """The option "20,40" as (20, 40)."""
    return tuple(int(part) for part in text.split(","))


def sweep(o, names, train):
    """train(name, options with `size`), which returns a dict, for all names that --only leaves and all sizes; what is there is kept."""
    results = []
    for name in (name for name in names if o.only in name):
        for size in o.sizes:
            point = Namespace(**{k: v for k, v in vars(o).items() if k != "sizes"}, size=size)
            found = kept(point, f"{name} S {size}", lambda name=name, point=point: train(name, point))
            results.append({"model": name, "size": size} | found)
    return results


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
