"""What do runs say when they are looked at together?"""
