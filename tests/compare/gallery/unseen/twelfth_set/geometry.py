"""Geometry: rotations of quaternions, a camera, polygons, normals of faces, covariances of splats."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

FACES = torch.tensor([[0, 1, 2], [0, 2, 3], [1, 4, 2]])


def rotation_matrix(q):
    w, x, y, z = q.unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], 1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], 1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1),
    ]
    return torch.stack(rows, 1)


class RotationMatrixFunction(Function):
    @staticmethod
    def forward(ctx, q):
        ctx.save_for_backward(q)
        return rotation_matrix(q)

    @staticmethod
    def backward(ctx, g):
        w, x, y, z = ctx.saved_tensors[0].unbind(1)
        skew = g - g.transpose(1, 2)
        symmetric = g + g.transpose(1, 2)
        a, b, c = skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]
        grad_w = a * x + b * y + c * z
        grad_x = (
            a * w + symmetric[:, 0, 1] * y + symmetric[:, 0, 2] * z - (symmetric[:, 1, 1] + symmetric[:, 2, 2]) * x
        )
        grad_y = (
            b * w + symmetric[:, 0, 1] * x + symmetric[:, 1, 2] * z - (symmetric[:, 0, 0] + symmetric[:, 2, 2]) * y
        )
        grad_z = (
            c * w + symmetric[:, 0, 2] * x + symmetric[:, 1, 2] * y - (symmetric[:, 0, 0] + symmetric[:, 1, 1]) * z
        )
        return 2 * torch.stack([grad_w, grad_x, grad_y, grad_z], 1)


class QuatToMat(Function):
    @staticmethod
    def forward(ctx, quat):
        ctx.save_for_backward(quat)
        return rotation_matrix(quat)

    @staticmethod
    def backward(ctx, v_R):
        (quat,) = ctx.saved_tensors
        w, x, y, z = quat.unbind(-1)
        v = v_R.flatten(1).unbind(-1)
        v_quat = torch.empty_like(quat)
        v_quat[:, 0] = 2 * (x * (v[7] - v[5]) + y * (v[2] - v[6]) + z * (v[3] - v[1]))
        v_quat[:, 1] = 2 * (-2 * x * (v[4] + v[8]) + y * (v[1] + v[3]) + z * (v[2] + v[6]) + w * (v[7] - v[5]))
        v_quat[:, 2] = 2 * (x * (v[1] + v[3]) - 2 * y * (v[0] + v[8]) + z * (v[5] + v[7]) + w * (v[6] - v[2]))
        v_quat[:, 3] = 2 * (x * (v[2] + v[6]) + y * (v[5] + v[7]) - 2 * z * (v[0] + v[4]) + w * (v[3] - v[1]))
        return v_quat


def projected(points, focal, centre):
    return points[:, :2] / points[:, 2:] * focal + centre


class PinholeCamera(Function):
    @staticmethod
    def forward(ctx, points, focal, centre):
        x, y, z = points.unbind(1)
        u = focal[0] * x / z + centre[0]
        v = focal[1] * y / z + centre[1]
        ctx.save_for_backward(points, focal)
        return torch.stack((u, v), dim=1)

    @staticmethod
    def backward(ctx, grad_uv):
        points, focal = ctx.saved_tensors
        x, y, z = points.unbind(1)
        gu, gv = grad_uv.unbind(1)
        gx = gu * focal[0] / z
        gy = gv * focal[1] / z
        gz = -gu * focal[0] * x / z**2 - gv * focal[1] * y / z
        grad_focal = torch.stack(((gu * x / z).sum(), (gv * y / z).sum()))
        return torch.stack((gx, gy, gz), dim=1), grad_focal, grad_uv.sum(dim=0)


def polygon_area(corners):
    x, y = corners.unbind(2)
    return (x * y.roll(-1, 1) - y * x.roll(-1, 1)).sum(1) / 2


class Shoelace(Function):
    @staticmethod
    def forward(ctx, vertices):
        following = torch.roll(vertices, shifts=-1, dims=1)
        ctx.save_for_backward(vertices, following)
        cross = vertices[..., 0] * following[..., 1] - vertices[..., 1] * following[..., 0]
        return 0.5 * cross.sum(dim=1)

    @staticmethod
    def backward(ctx, grad_area):
        vertices, following = ctx.saved_tensors
        edge = following - vertices
        grad = torch.stack((edge[..., 1], -edge[..., 0]), dim=-1)
        return 0.5 * grad * grad_area.view(-1, 1, 1)


def face_normals(vertices):
    a, b, c = vertices[FACES].unbind(1)
    return torch.linalg.cross(b - a, c - a)


class FaceNormalsFunction(Function):
    @staticmethod
    def forward(ctx, vertices):
        ctx.save_for_backward(vertices)
        return face_normals(vertices)

    @staticmethod
    def backward(ctx, g):
        (vertices,) = ctx.saved_tensors
        a, b, c = vertices[FACES].unbind(1)
        grad_b = torch.linalg.cross(c - a, g)
        grad_c = torch.linalg.cross(g, b - a)
        corners = torch.stack([-grad_b - grad_c, grad_b, grad_c], 1)
        return torch.zeros_like(vertices).index_add(0, FACES.flatten(), corners.flatten(0, 1))


class FaceNormals(Function):
    @staticmethod
    def forward(ctx, verts):
        v0, v1, v2 = (verts[FACES[:, i]] for i in range(3))
        e1, e2 = v1 - v0, v2 - v0
        ctx.save_for_backward(e1, e2)
        ctx.num_verts = verts.shape[0]
        return torch.cross(e1, e2, dim=1)

    @staticmethod
    def backward(ctx, grad_normal):
        e1, e2 = ctx.saved_tensors
        grad_e1 = torch.cross(e2, grad_normal, dim=1)
        grad_e2 = torch.cross(grad_normal, e1, dim=1)
        grad_verts = grad_normal.new_zeros(ctx.num_verts, 3)
        for corner, grad in ((1, grad_e1), (2, grad_e2)):
            grad_verts.index_add_(0, FACES[:, corner], grad)
            grad_verts.index_add_(0, FACES[:, corner - 1], -grad)
        return grad_verts


def covariance(scale, rotation):
    half = rotation * scale[:, None]
    return half @ half.transpose(1, 2)


class CovarianceFunction(Function):
    @staticmethod
    def forward(ctx, scale, rotation):
        ctx.save_for_backward(scale, rotation)
        return covariance(scale, rotation)

    @staticmethod
    def backward(ctx, g):
        scale, rotation = ctx.saved_tensors
        grad_half = (g + g.transpose(1, 2)) @ (rotation * scale[:, None])
        return (grad_half * rotation).sum(1), grad_half * scale[:, None]


class ScaleRotToCovar(Function):
    @staticmethod
    def forward(ctx, scale, rot):
        m = rot @ torch.diag_embed(scale)
        ctx.save_for_backward(scale, rot, m)
        return torch.bmm(m, m.mT)

    @staticmethod
    def backward(ctx, v_covar):
        scale, rot, m = ctx.saved_tensors
        v_m = torch.bmm(v_covar + v_covar.mT, m)
        v_scale = torch.einsum("nij,nij->ni", v_m, rot)
        v_rot = torch.bmm(v_m, torch.diag_embed(scale))
        return v_scale, v_rot


OPERATIONS = [
    Operation(
        "matrix of a quaternion, one sign",
        RotationMatrixFunction,
        QuatToMat,
        rotation_matrix,
        lambda: (torch.randn(5, 4) / 2,),
        named="y's gradient: the term with w has the wrong sign",
        kinds=("factor of one term",),
        named_words=(r"\bsign\b|[-−]1\b|negat",),
        located=(r"gradient of (q|quat|input 0)",),
    ),
    Operation(
        "normals of faces, common corner",
        FaceNormalsFunction,
        FaceNormals,
        face_normals,
        lambda: (torch.randn(5, 3),),
        named="the second edge's gradient is subtracted at the second corner, where it starts at the first",
        kinds=("another operand", "permuted", "missing term", "shifted"),
        named_words=(r"corner|\bplaces?\b|\bind(ex|ices)\b", r"\b[abc]\b.*instead of.*\b[abc]\b", r"exchang|swap"),
        located=(r"gradient of (vertices|verts|input 0)",),
    ),
    Operation(
        "covariance of splats, sum over rows",
        CovarianceFunction,
        ScaleRotToCovar,
        covariance,
        lambda: {"scale": torch.rand(4, 3) + 0.3, "rotation": torch.linalg.qr(torch.randn(4, 3, 3)).Q},
        named="scale: the sum is over the columns of each rotation, where that over its rows belongs",
        kinds=("wrong sum", "transposed", "not transposed", "another operand"),
        named_words=(r"\bsum\b.*dimension|dimension.*\bsum\b", r"transpos", r"columns.*rows|rows.*columns"),
        located=(r"gradient of scale",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "camera, square of the depth in one term",
            PinholeCamera.apply,
            projected,
            lambda: {
                "points": torch.cat([torch.randn(5, 2), 1.5 + torch.rand(5, 1)], 1),
                "focal": torch.rand(2) + 1,
                "centre": torch.randn(2),
            },
            whole_numbers=False,
        ),
        named="depth: the second coordinate's term is divided by the depth where its square belongs",
        kinds=("step left out", "factor of one term", "another operand", "missing term", "factor by element"),
        named_words=(r"divi[ds]|\bdiv\b", r"square|depth|points\[:, 2", r"one term"),
        located=(r"gradient of points",),
    ),
    WrongFunction(
        Case("area of a polygon, previous corner", Shoelace.apply, polygon_area, lambda: (torch.randn(4, 5, 2),)),
        named="next corner minus the corner itself, where next minus previous belongs",
        kinds=("another operand", "shifted", "missing term", "step left out"),
        named_words=(r"roll|shift|previous|neighbour", r"step left out|left out", r"\bind(ex|ices)\b"),
        located=(r"gradient of (corners|vertices|input 0)",),
    ),
]
