"""Quantization maths: grids, streaming statistics, range estimators, weight rounding and calibration."""

from edgeq.quant.calibrator import calibrate
from edgeq.quant.ranges import ESTIMATORS, choose_range
from edgeq.quant.statistics import TensorStatistics
from edgeq.quant.uniform import dequantize, fake_quantize, qparams_from_range, quantize
from edgeq.quant.weights import cover_bias, round_weights, weight_qparams

__all__ = [
    "ESTIMATORS",
    "TensorStatistics",
    "calibrate",
    "choose_range",
    "cover_bias",
    "dequantize",
    "fake_quantize",
    "qparams_from_range",
    "quantize",
    "round_weights",
    "weight_qparams",
]
