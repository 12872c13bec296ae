"""Rows {image, question, answer} from anywhere: files, folders, the Hub, the shape world."""
