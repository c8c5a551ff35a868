"""OpenVINO models (`.xml` with `.bin`) through OpenVINO's converter."""
