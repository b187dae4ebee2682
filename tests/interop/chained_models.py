"""Modules whose forwards call layers one on the result of the other, in the ways in which people write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layers(nn.Module):
    """The layers of all modules below; ``inplace`` is that of the ReLU."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace), nn.MaxPool2d(2)
        self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(6, 6)


class Nested(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return torch.cat([self.pool(self.relu(self.conv(x))), self.pool(self.relu(self.norm(x)))])


class Statements(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.relu(x)
        if x.numel():
            x = self.norm(x)
            x = self.relu(x)
            x = self.pool(x)
        out = self.relu(self.conv(x))
        out = self.pool(out)
        return out


class Returned(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.relu(x)


class Functional(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.max_pool2d(F.relu(self.conv(x)), 3, stride=1, padding=1)
        x = self.conv(x)
        x = F.relu(x, inplace=True)
        x = F.max_pool2d(x, kernel_size=2)
        x = torch.relu(self.fc(x))
        for layer in (self.conv, self.fc):
            x = layer(x).relu()
        return F.relu_(self.fc(x))


class Mnist(nn.Module):
    """The network of PyTorch's MNIST example, of smaller images and fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 1), nn.Conv2d(4, 4, 3, 1)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(64, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.relu(x)
        x = self.conv2(x)
        x = F.relu(x)
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)
        x = self.fc1(x)
        x = F.relu(x)
        x = self.dropout2(x)
        x = self.fc2(x)
        return F.log_softmax(x, dim=1)


class Skip(Layers):
    """The ReLU, in place or not, of a result that is used again."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        y = self.relu(z)
        return y + z * z


class Alias(Layers):
    def forward(self, x: Tensor) -> Tensor:
        results = []
        x = self.conv(x)
        results.append(x)
        x = self.relu(x)
        return x + results[0]


class Caught(Layers):
    """If the pooling fails, ``x`` is the result of the convolution or of the ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.conv(x)
            x = self.relu(x)
            x = self.pool(x)
        except ValueError:
            return x
        return x


class Closure(Layers):
    """A function that reads ``x`` when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        def read() -> Tensor:
            return x

        x = self.conv(x)
        x = self.relu(x)
        return read()


LAYERS_MADE: list[int] = []


def make_layer(channels: int) -> nn.Module:
    LAYERS_MADE.append(channels)
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, 3)


class Making(nn.Module):
    """A layer that is made in the call, where making it again would show."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = make_layer(channels)(x)
        x = F.relu(x)
        return F.relu(make_layer(channels)(x))
