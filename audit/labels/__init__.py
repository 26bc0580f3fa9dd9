"""Labels of data sets and outputs of models: which of them stand for the same class."""
