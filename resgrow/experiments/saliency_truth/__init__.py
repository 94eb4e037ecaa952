"""Does saliency predict what deleting costs? Predicted against measured rises of the loss, of weights and of sets.

resgrow experiment saliency-truth [--only perceptron tanh resnet8 lenet5]
"""
