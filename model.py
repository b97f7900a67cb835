"""The three models. Each maps images (B, 1, 28, 28) to logits (B, 10).

Logits are unbounded scores, one per digit; the largest one is the model's answer. There is
no softmax here, because `torch.nn.CrossEntropyLoss` applies it. A second softmax would keep
the loss high, however well the model learns.

The comment beside each layer counts its parameters, biases included:

    convolution  (kernel height x kernel width x input channels + 1) x output channels
    linear       (inputs + 1) x outputs
    batch norm   2 x channels: a scale and a shift for each
"""

import torch
from torch import nn


class LeNet5(nn.Module):
    """LeNet-5 in its modern form: 61,706 parameters.

    Source: LeCun, Bottou, Bengio, Haffner (1998), "Gradient-Based Learning Applied to
    Document Recognition", section II.B. The paper uses tanh, average pooling with trainable
    weights, a second convolution that sees only some of its input channels, and an output
    layer of radial basis functions. This model uses ReLU, max pooling, full connections and
    a linear output. A padding of 2 turns the 28 x 28 pixels into the paper's 32 x 32.

    forward: images float32 (B, 1, 28, 28), normalized -> logits float32 (B, 10).
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=5, padding=2)  # (5 x 5 x 1 + 1) x 6 = 156
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)  # (5 x 5 x 6 + 1) x 16 = 2,416
        self.fc1 = nn.Linear(400, 120)  # (400 + 1) x 120 = 48,120
        self.fc2 = nn.Linear(120, 84)  # (120 + 1) x 84 = 10,164
        self.fc3 = nn.Linear(84, 10)  # (84 + 1) x 10 = 850
        self.pool = nn.MaxPool2d(2)
        self.activation = nn.ReLU()

    def forward(self, images):
        # Convolutions run faster when the channels of a pixel are neighbours in memory.
        images = images.to(memory_format=torch.channels_last)
        x = self.pool(self.activation(self.conv1(images)))  # (B, 6, 14, 14)
        x = self.pool(self.activation(self.conv2(x)))  # (B, 16, 5, 5)
        x = x.flatten(start_dim=1)  # (B, 16 x 5 x 5 = 400)
        x = self.activation(self.fc1(x))  # (B, 120)
        x = self.activation(self.fc2(x))  # (B, 84)
        return self.fc3(x)  # (B, 10)


class RegularizedLeNet5(LeNet5):
    """LeNet5 with batch normalization before each activation (Ioffe, Szegedy 2015) and
    dropout after the 120-wide layer (Srivastava et al. 2014): 62,158 parameters.

    This is only the model's part. Augmentation, weight decay and the larger learning rate, which batch
    norm allows, are settings of its row in main.py.

    dropout: probability of setting each of the 120 activations to zero during training,
        0 <= dropout < 1. `model.eval()` turns it off.
    batch_norm: False leaves batch normalization out, to show what dropout does alone.
    """

    def __init__(self, dropout=0.05, batch_norm=True):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(6)  # 2 x 6 = 12
        self.norm2 = nn.BatchNorm2d(16)  # 2 x 16 = 32
        self.norm3 = nn.BatchNorm1d(120)  # 2 x 120 = 240
        self.norm4 = nn.BatchNorm1d(84)  # 2 x 84 = 168
        if not batch_norm:
            self.norm1 = self.norm2 = self.norm3 = self.norm4 = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, images):
        images = images.to(memory_format=torch.channels_last)
        # Pooling comes before the norm, which then has a quarter of the values to normalize. The other order
        # gives other weights, and a step of training takes 1.25 times as long.
        x = self.activation(self.norm1(self.pool(self.conv1(images))))  # (B, 6, 14, 14)
        x = self.activation(self.norm2(self.pool(self.conv2(x))))  # (B, 16, 5, 5)
        x = x.flatten(start_dim=1)  # (B, 16 x 5 x 5 = 400)
        x = self.dropout(self.activation(self.norm3(self.fc1(x))))  # (B, 120)
        x = self.activation(self.norm4(self.fc2(x)))  # (B, 84)
        return self.fc3(x)  # (B, 10)


class CustomMLP(nn.Module):
    """Eight linear layers with 61,720 parameters, 14 more than LeNet5.

    It sees an image as 784 separate numbers and does not know which pixels are neighbours.

    Only this model has an initialization of its own, because only this one is deep and narrow: with
    PyTorch's default it still guesses after the first epoch (five seeds of five). The others learn at once.

    forward: images float32 (B, 1, 28, 28), normalized -> logits float32 (B, 10).
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),  # (B, 784)
            nn.Linear(784, 64),  # (784 + 1) x 64 = 50,240
            nn.ReLU(),
            nn.Linear(64, 64),  # (64 + 1) x 64 = 4,160
            nn.ReLU(),
            nn.Linear(64, 64),  # (64 + 1) x 64 = 4,160
            nn.ReLU(),
            nn.Linear(64, 32),  # (64 + 1) x 32 = 2,080
            nn.ReLU(),
            nn.Linear(32, 16),  # (32 + 1) x 16 = 528
            nn.ReLU(),
            nn.Linear(16, 16),  # (16 + 1) x 16 = 272
            nn.ReLU(),
            nn.Linear(16, 10),  # (16 + 1) x 10 = 170
            nn.ReLU(),
            nn.Linear(10, 10),  # (10 + 1) x 10 = 110
        )
        # PyTorch's default shrinks the signal in every layer, and the narrow layers can lose
        # what is left of it. Orthogonal weights keep it (Saxe, McClelland,
        # Ganguli 2014); the gain makes up for the half that ReLU cuts off (He et al. 2015).
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=nn.init.calculate_gain("relu"))
                nn.init.zeros_(layer.bias)

    def forward(self, images):
        return self.layers(images)
