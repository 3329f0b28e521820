"""Points on the surfaces of nine shapes, about as many on every part as its area asks for."""

import numpy as np


def sphere(draw, count):
    points = draw.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def cube(draw, count):
    points = draw.uniform(-0.8, 0.8, (count, 3))
    points[np.arange(count), draw.integers(3, size=count)] = draw.choice((-0.8, 0.8), count)
    return points


def cylinder(draw, count):
    circle, height = _circle(draw, count), draw.uniform(-0.9, 0.9, count)
    cap = draw.random(count) < 0.25  # two caps of 0.6^2 pi beside a side of 1.2 pi x 1.8
    radius = np.where(cap, 0.6 * np.sqrt(draw.random(count)), 0.6)
    return np.column_stack([circle * radius[:, None], np.where(cap, np.copysign(0.9, height), height)])


def cone(draw, count):
    base = draw.random(count) < 0.29  # of 0.7^2 pi beside a side of 0.7 pi x 1.75
    down = np.sqrt(draw.random(count))  # from the tip, by area
    flat = _circle(draw, count) * np.where(base, np.sqrt(draw.random(count)), down)[:, None] * 0.7
    return np.column_stack([flat, np.where(base, -0.8, 0.8 - 1.6 * down)])


def torus(draw, count):
    around, across = draw.uniform(0, 2 * np.pi, (2, 4 * count))
    outer = draw.random(4 * count) < (1 + 0.35 * np.cos(across)) / 1.35  # more room on the outside
    around, across = around[outer][:count], across[outer][:count]
    radius = 0.75 * (1 + 0.35 * np.cos(across))
    return np.column_stack([radius * np.cos(around), radius * np.sin(around), 0.75 * 0.35 * np.sin(across)])


def pyramid(draw, count):
    base = draw.random(count) < 0.37  # of 1.8^2 beside four sides of 0.9 x 1.5
    down = np.sqrt(draw.random(count))
    edge = draw.uniform(-1, 1, (count, 2))
    side, one = edge.copy(), draw.integers(2, size=count)
    side[np.arange(count), one] = np.copysign(1.0, side[np.arange(count), one])
    flat = np.where(base[:, None], edge, side * down[:, None]) * 0.9
    return np.column_stack([flat, np.where(base, -0.6, 0.6 - 1.2 * down)])


def plane(draw, count):
    return np.column_stack([draw.uniform(-0.9, 0.9, (count, 2)), np.zeros(count)])


def helix(draw, count):
    turn = draw.uniform(0, 5 * np.pi, count)
    wire = np.column_stack([0.7 * np.cos(turn), 0.7 * np.sin(turn), 1.8 * turn / (5 * np.pi) - 0.9])
    return wire + 0.08 * sphere(draw, count)


def cross(draw, count):
    points = 0.12 * sphere(draw, count)
    points[np.arange(count), draw.integers(3, size=count)] = draw.uniform(-1, 1, count)
    return points


SURFACES = {
    shape.__name__: shape for shape in (sphere, cube, cylinder, cone, torus, pyramid, plane, helix, cross)
}


def _circle(draw, count):
    angle = draw.uniform(0, 2 * np.pi, count)
    return np.column_stack([np.cos(angle), np.sin(angle)])
