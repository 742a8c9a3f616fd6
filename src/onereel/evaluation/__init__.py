"""What a trained model is worth: accuracy over views and ranks, cost per clip, answers for single videos."""
