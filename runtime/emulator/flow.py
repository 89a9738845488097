"""Where diverged lanes meet again: immediate post-dominators of a kernel's instructions."""


def reconvergence(successors: list[list[int]], branches: list[int]) -> dict[int, int]:
    """For each branch instruction, the first instruction that all its paths pass, or -1 when that is only the exit.

    `successors[i]` lists the instructions that may follow instruction i; len(successors) stands for the exit. Of a
    loop that never ends, the last instruction counts as one that might leave.
    The method is Cooper, Harvey and Kennedy's "A Simple, Fast Dominance Algorithm" on the reversed graph of basic
    blocks.
    """
    exit_node = len(successors)
    leaders = {0} | {s for i, after in enumerate(successors) if after != [i + 1] for s in (*after, i + 1)}
    leaders |= {branch + 1 for branch in branches}
    starts = sorted(leader for leader in leaders if leader < exit_node)
    ends = [*(s - 1 for s in starts[1:]), exit_node - 1]
    block_of = {start: number for number, start in enumerate(starts)}
    last = len(starts)  # the exit block
    after_block = [[block_of.get(s, last) for s in successors[end]] for end in ends] + [[]]
    before: list[list[int]] = [[] for _ in range(last + 1)]
    for block, after in enumerate(after_block):
        for s in after:
            before[s].append(block)
    _leave_endless_loops(after_block, before)
    immediate = _dominators(before, after_block, last)
    block_of_end = {end: number for number, end in enumerate(ends)}
    result = {}
    for branch in branches:
        dominator = immediate.get(block_of_end[branch], last)
        result[branch] = starts[dominator] if dominator < last else -1
    return result


def _reached(graph: list[list[int]], root: int, seen: set[int]) -> None:
    """Adds what can be reached from `root` to `seen`."""
    waiting = [root]
    seen.add(root)
    while waiting:
        for node in graph[waiting.pop()]:
            if node not in seen:
                seen.add(node)
                waiting.append(node)


def _leave_endless_loops(after: list[list[int]], before: list[list[int]]) -> None:
    """Adds an edge to the exit, the last block, from the last block of each part that cannot reach it."""
    last = len(after) - 1
    ending: set[int] = set()
    _reached(before, last, ending)
    for block in range(last - 1, -1, -1):
        if block not in ending:
            after[block] = [*after[block], last]
            before[last].append(block)
            _reached(before, block, ending)


def _dominators(forward: list[list[int]], backward: list[list[int]], root: int) -> dict[int, int]:
    """Immediate dominators of `forward` from `root`; `backward` is its reverse. Unreachable nodes have none."""
    order: list[int] = []
    seen, stack = {root}, [(root, iter(forward[root]))]
    while stack:
        node, rest = stack[-1]
        following = next((n for n in rest if n not in seen), None)
        if following is None:
            order.append(stack.pop()[0])
        else:
            seen.add(following)
            stack.append((following, iter(forward[following])))
    rank = {node: position for position, node in enumerate(order)}
    immediate = {root: root}
    changed = True
    while changed:
        changed = False
        for node in reversed(order[:-1]):
            known = [n for n in backward[node] if n in immediate]
            new = known[0]
            for other in known[1:]:
                while new != other:
                    if rank[new] < rank[other]:
                        new = immediate[new]
                    else:
                        other = immediate[other]
            if immediate.get(node) != new:
                immediate[node] = new
                changed = True
    return immediate
