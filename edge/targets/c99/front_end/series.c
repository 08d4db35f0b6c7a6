/* Tells the class of each window of .csv files: series [-o] FILE...
 *
 * The first line of a file names its columns, in any order and with others between them. With -o
 * the outputs of the model are told too, as integers. */
#include <stdlib.h>

#include "program.h"

#include "model_series.h"
#include "model_series_names.h"

#define LONGEST 512
#define DAMAGED (-2) /* what no character is */

typedef struct {
    FILE *file;
    long line; /* that is being read, from 1 */
    char text[LONGEST];
    int is_quoted, is_cut;
} reader;

static model_series series;

static int is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Reads a field; returns what ends it: a comma, a line's end, EOF, or DAMAGED. */
static int read_field(reader *r) {
    size_t length = 0;
    int c = getc(r->file);
    int is_inside = r->is_quoted = c == '"';
    if (is_inside) c = getc(r->file);
    for (r->is_cut = 0; is_inside || (c != ',' && c != '\n' && c != '\r' && c != EOF);) {
        if (c == EOF) return DAMAGED;
        if (is_inside && c == '"' && (c = getc(r->file)) != '"') {
            is_inside = 0;
            if (c != ',' && c != '\n' && c != '\r' && c != EOF) return DAMAGED;
            continue;
        }
        r->line += c == '\n';
        if (length < LONGEST - 1) r->text[length++] = (char)c;
        else r->is_cut = 1;
        c = getc(r->file);
    }
    r->text[length] = 0;
    if (c == '\r') {
        const int next = getc(r->file);
        if (next != '\n' && next != EOF) ungetc(next, r->file);
        c = '\n';
    }
    return c;
}

/* Takes the blanks around a field away; returns where it begins. */
static char *trimmed(char *text) {
    while (is_blank(*text)) text++;
    for (char *end = text + strlen(text); end > text && is_blank(end[-1]);) *--end = 0;
    return text;
}

/* Reads the first line; returns how many columns it names, or 0 after telling what is wrong. */
static int read_head(reader *r, const char *name, int *places) {
    int found[MODEL_SERIES_COLUMNS] = {0}, count = 0, end = ',';
    char mark[3];
    if (fread(mark, 1, 3, r->file) != 3 || memcmp(mark, "\xEF\xBB\xBF", 3)) rewind(r->file);
    for (; end == ','; count++) {
        end = read_field(r);
        const char *head = trimmed(r->text);
        for (int c = 0; c < MODEL_SERIES_COLUMNS; c++)
            if (!r->is_cut && !strcmp(head, model_column_names[c])) places[c] = count, found[c]++;
    }
    r->line++;
    for (int c = 0; c < MODEL_SERIES_COLUMNS; c++) {
        if (found[c] == 1) continue;
        fprintf(stderr, "%s has %d columns '%s' in its first line\n", name, found[c],
                model_column_names[c]);
        return 0;
    }
    return end == DAMAGED ? (int)(refuse(name, "is no .csv file"), 0) : count;
}

/* Reads a number; returns whether it is one, and of float's range. */
static int read_number(const reader *r, char *text, float *value) {
    char *end;
    text = trimmed(text);
    if (r->is_cut || strspn(text, "0123456789.+-eE") != strlen(text)) return 0;
    const double found = strtod(text, &end);
    if (end == text || *end || !(found < 3e38 && found > -3e38)) return 0;
    *value = (float)found;
    return 1;
}

/* Reads a line; returns how many values it has, 0 of an empty one, -1 at the end of the file, or
 * DAMAGED after telling what is wrong. */
static int read_line(reader *r, const char *name, const int *places, float *line) {
    const long begun = r->line;
    int count = 0, end = ',';
    while (end == ',') {
        end = read_field(r);
        if (end == DAMAGED) break;
        if (!count && !*r->text && !r->is_quoted && end != ',') {
            r->line += end == '\n';
            return end == EOF ? -1 : 0;
        }
        for (int c = 0; c < MODEL_SERIES_COLUMNS; c++) {
            if (places[c] != count || read_number(r, r->text, line + c)) continue;
            fprintf(stderr, "%s, line %ld: %s is no finite number\n", name, r->line,
                    model_column_names[c]);
            return DAMAGED;
        }
        count++;
    }
    if (end == DAMAGED) fprintf(stderr, "%s, line %ld is none of a .csv file\n", name, begun);
    r->line++;
    return end == DAMAGED ? DAMAGED : count;
}

/* Tells each window of the lines that follow the first. */
static int tell_windows(reader *r, const char *name, const int *places, int columns) {
    static float line[MODEL_SERIES_COLUMNS];
    char part[60];
    long lines = 0;
    model_series_start(&series);
    for (int count; (count = read_line(r, name, places, line)) != -1;) {
        if (count == DAMAGED) return 1;
        if (count == 0) continue;
        if (count != columns) {
            fprintf(stderr, "%s, line %ld has %d values, and the first line names %d\n", name,
                    r->line - 1, count, columns);
            return 1;
        }
        lines++;
        snprintf(part, sizeof part, "%ld to %ld", lines - MODEL_SERIES_STEPS + 1, lines);
        if (model_series_add(&series, line) && tell(name, part, series.input)) return 1;
    }
    if (lines >= MODEL_SERIES_STEPS) return 0;
    fprintf(stderr, "%s has %ld lines of numbers; a window takes %d\n", name, lines,
            MODEL_SERIES_STEPS);
    return 1;
}

static int read_series(const char *name) {
    static reader r;
    int places[MODEL_SERIES_COLUMNS] = {0};
    r.file = fopen(name, "rb"), r.line = 1;
    if (!r.file) return refuse(name, "cannot be opened");
    const int columns = read_head(&r, name, places);
    const int failed = !columns || tell_windows(&r, name, places, columns);
    fclose(r.file);
    return failed;
}

int main(int count, char **arguments) {
    int failed = 0;
    shows_outputs = count > 1 && !strcmp(arguments[1], "-o");
    for (int i = 1 + shows_outputs; i < count; i++) failed |= read_series(arguments[i]);
    return failed;
}
