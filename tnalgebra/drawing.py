def svg(nodes, output, sizes):
    return ""
