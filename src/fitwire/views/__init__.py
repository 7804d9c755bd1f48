"""What a person sees; every view draws what ``panels.py`` says."""
