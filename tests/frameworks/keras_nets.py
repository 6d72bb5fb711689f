"""A network in Keras with batch norm, dropout, a regularizer and two inputs' worth."""

import keras

layers = keras.layers


def conv_net() -> keras.Model:
    """Convolution, batch norm, dense layers, dropout."""
    images = keras.Input((8, 8, 3))
    h = layers.Conv2D(8, 3, name="conv")(images)
    h = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="norm")(h))
    h = layers.GlobalAveragePooling2D()(h)
    h = layers.Dense(12, "relu", kernel_regularizer="l2")(h)
    h = layers.Dropout(0.5, seed=1)(h)
    return keras.Model(images, layers.Dense(4)(h))


def text_net() -> keras.Model:
    """Embedding and self-attention, whose biases have two axes."""
    tokens = keras.Input((6,), dtype="int32")
    h = layers.Embedding(11, 16, name="embed")(tokens)
    h = layers.LayerNormalization()(h + layers.MultiHeadAttention(4, 4)(h, h))
    return keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(h)))
