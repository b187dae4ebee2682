"""Weather: dew point, cold that wind makes, water in soil, wind over rough ground."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def dew_point(temperature, humidity):
    gamma = humidity.log() + 17.6 * temperature / (243 + temperature)
    return 243 * gamma / (17.6 - gamma)


class DewPointFunction(Function):
    @staticmethod
    def forward(ctx, temperature, humidity):
        ctx.save_for_backward(temperature, humidity)
        return dew_point(temperature, humidity)

    @staticmethod
    def backward(ctx, g):
        temperature, humidity = ctx.saved_tensors
        gamma = humidity.log() + 17.6 * temperature / (243 + temperature)
        to_gamma = g * 243 * 17.6 / (17.6 - gamma) ** 2
        by_temperature = 17.6 / (243 + temperature) * (243 / (243 + temperature))
        return to_gamma * by_temperature, to_gamma / humidity


class DewPoint(Function):
    """Magnus formula with a = 17.6, b = 243 degrees Celsius."""

    a, b = 17.6, 243.0

    @staticmethod
    def forward(ctx, T, rh):
        a, b = DewPoint.a, DewPoint.b
        gamma = torch.log(rh) + a * T / (b + T)
        ctx.save_for_backward(T, rh, gamma)
        return b * gamma / (a - gamma)

    @staticmethod
    def backward(ctx, grad_td):
        a, b = DewPoint.a, DewPoint.b
        T, rh, gamma = ctx.saved_tensors
        grad_gamma = grad_td * b / (a - gamma)
        grad_T = grad_gamma * a * b / (b + T) ** 2
        grad_rh = grad_gamma / rh
        return grad_T, grad_rh


def wind_chill(temperature, wind):
    cold = 13.1 + 0.62 * temperature + (0.4 * temperature - 11.4) * wind**0.16
    return torch.where((temperature <= 1) & (wind > 0.5), cold, temperature)


class WindChillFunction(Function):
    @staticmethod
    def forward(ctx, temperature, wind):
        ctx.save_for_backward(temperature, wind)
        return wind_chill(temperature, wind)

    @staticmethod
    def backward(ctx, g):
        temperature, wind = ctx.saved_tensors
        applies = (temperature <= 1) & (wind > 0.5)
        to_temperature = torch.where(applies, 0.62 + 0.4 * wind**0.16, torch.ones_like(wind))
        to_wind = torch.where(applies, 0.16 * (0.4 * temperature - 11.4) * wind**-0.84, torch.zeros_like(wind))
        return g * to_temperature, g * to_wind


class FeltTemperature(Function):
    @staticmethod
    def forward(ctx, temp, wind):
        power = wind.pow(0.16)
        felt = 13.1 + 0.62 * temp - 11.4 * power + 0.4 * temp * power
        mild = (temp > 1) | (wind <= 0.5)
        felt[mild] = temp[mild]
        ctx.save_for_backward(temp, wind, power, mild)
        return felt

    @staticmethod
    def backward(ctx, grad):
        temp, wind, power, mild = ctx.saved_tensors
        grad_temp = grad * (0.62 + 0.4 * power)
        grad_wind = grad * (0.4 * temp - 11.4) * 0.16 * power / wind
        grad_temp[mild] = 0
        grad_wind[mild] = 0
        return grad_temp, grad_wind


def soil_water(rain, drying, capacity):
    water, path = 0.5 * capacity, []
    for t in range(len(rain)):
        water = torch.minimum(water + rain[t] - drying * water, capacity)
        path.append(water)
    return torch.stack(path)


class SoilWaterFunction(Function):
    @staticmethod
    def forward(ctx, rain, drying, capacity):
        path = soil_water(rain, drying, capacity)
        ctx.save_for_backward(rain, drying, capacity, path)
        return path

    @staticmethod
    def backward(ctx, g):
        rain, drying, capacity, path = ctx.saved_tensors
        to_rain, to_drying, to_capacity = (torch.zeros_like(each) for each in (rain, drying, capacity))
        later = torch.zeros_like(drying)
        for t in reversed(range(len(rain))):
            before = path[t - 1] if t else 0.5 * capacity
            later = later + g[t]
            full = before + rain[t] - drying * before > capacity
            to_capacity = to_capacity + torch.where(full, later, torch.zeros_like(later))
            later = torch.where(full, torch.zeros_like(later), later)
            to_rain[t] = later
            to_drying = to_drying - later * before
            later = later * (1 - drying)
        return to_rain, to_drying, to_capacity + 0.5 * later


class BucketModel(Function):
    """Daily soil water of one bucket per field; what is above the capacity runs off."""

    @staticmethod
    def forward(ctx, rain, k, cap):
        state = [0.5 * cap]
        overflow = []
        for r in rain:
            w = state[-1] + r - k * state[-1]
            overflow.append(w > cap)
            state.append(torch.min(w, cap))
        ctx.save_for_backward(k, torch.stack(state), torch.stack(overflow))
        return torch.stack(state[1:])

    @staticmethod
    def backward(ctx, grad_states):
        k, state, overflow = ctx.saved_tensors
        n = len(overflow)
        grad_rain = torch.zeros_like(grad_states)
        grad_k = torch.zeros_like(k)
        grad_cap = torch.zeros_like(k)
        carry = torch.zeros_like(k)
        for t in range(n - 1, -1, -1):
            total = carry + grad_states[t]
            grad_cap += total * overflow[t]
            into = total * ~overflow[t]
            grad_rain[t] = into
            grad_k -= into * state[t]
            carry = total * (1 - k)
        grad_cap += 0.5 * carry
        return grad_rain, grad_k, grad_cap


def wind_profile(height, shift, roughness, friction):
    return friction / 0.4 * ((height - shift[:, None]) / roughness[:, None]).log()


class WindProfileFunction(Function):
    @staticmethod
    def forward(ctx, height, shift, roughness, friction):
        ctx.save_for_backward(height, shift, roughness, friction)
        return wind_profile(height, shift, roughness, friction)

    @staticmethod
    def backward(ctx, g):
        height, shift, roughness, friction = ctx.saved_tensors
        above = height - shift[:, None]
        to_above = g * friction / (0.4 * above)
        to_friction = (g * (above / roughness[:, None]).log()).sum() / 0.4
        return to_above.sum(0), -to_above.sum(1), -(g * friction).sum(1) / (0.4 * roughness), to_friction


class LogWindProfile(Function):
    @staticmethod
    def forward(ctx, z, d, z0, u_star):
        effective = z.unsqueeze(0) - d.unsqueeze(1)
        log_ratio = torch.log(effective) - torch.log(z0).unsqueeze(1)
        ctx.save_for_backward(effective, log_ratio, z0, u_star)
        return u_star * log_ratio / 0.4

    @staticmethod
    def backward(ctx, grad_u):
        effective, log_ratio, z0, u_star = ctx.saved_tensors
        grad_log = grad_u * u_star / 0.4
        grad_eff = grad_log / effective
        grad_z0 = -grad_log.sum(dim=1) / z0
        grad_u_star = (grad_u * log_ratio / 0.4).sum()
        return grad_eff.sum(dim=0), -grad_eff.mean(dim=1), grad_z0, grad_u_star


def heights():
    return {
        "height": 2 + 3 * torch.rand(5),
        "shift": torch.rand(3),
        "roughness": 0.1 + torch.rand(3),
        "friction": 0.3 + torch.rand(()),
    }


def fields():
    return {"rain": 0.8 * torch.rand(6, 3), "drying": 0.1 + 0.3 * torch.rand(3), "capacity": 1 + 0.3 * torch.rand(3)}


OPERATIONS = [
    Operation(
        "dew point, rule for the quotient",
        DewPointFunction,
        DewPoint,
        dew_point,
        lambda: {"temperature": 20 + 10 * torch.randn(6), "humidity": 0.3 + 0.6 * torch.rand(6)},
        named="both inputs: the part of gamma in the divisor a - gamma is missing",
        kinds=("factor by element", "missing term", "step left out", "another operand"),
        named_words=(r"divi|denominator|quotient", r"gamma", r"missing"),
        located=(r"gradient of (temperature|T)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "cold that wind makes, mild places",
        WindChillFunction,
        FeltTemperature,
        wind_chill,
        lambda: {"temperature": 3 * torch.randn(8), "wind": 2 * torch.rand(8)},
        named="temperature: where it is mild the result is the temperature itself, and its gradient is 1, not 0",
        kinds=("only at some indices", "only for some values", "missing term", "zero"),
        named_words=(r"mild|mask|where|grad_temp\[|index_put|set to",),
        located=(r"gradient of temp(erature)?\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "water in soil, days that overflow",
        SoilWaterFunction,
        BucketModel,
        soil_water,
        fields,
        named="the carried gradient passes days at which the bucket overflowed, where it should stop",
        kinds=("another operand", "only at some indices", "only for some values", "step left out"),
        named_words=(r"overflow|into|mask|full|where",),
        located=(r"gradient of rain\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
    Operation(
        "wind over rough ground, mean for the sum",
        WindProfileFunction,
        LogWindProfile,
        wind_profile,
        heights,
        named="shift: the mean over the heights stands for the sum",
        kinds=("constant factor", "wrong sum"),
        named_words=(r"mean", r"factor", r"1 ?/ ?5|0\.2|times 5|5 times"),
        located=(r"gradient of (shift|d)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
