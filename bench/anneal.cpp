// Orders of the bits of a chunk of floats, by simulated annealing; bench/anneal.py compiles and reads it.
//
// usage: anneal bits words f16 bf16 aim_f16 aim_bf16 steps seed
// `words` of a lane hold 16 * words / bits pairs of codes; f16, bf16: the place of a magnitude's first bit in a
// register's half, -1 for f16 where it cannot hold the type. Prints a line for each better order, then its words: the
// pair's letter and the bit, or s, of each of the 16 places. The cost is that of lowbitvm.codegen.convert.cost, but for
// the multiplications of bf16 and for rotations that differ in the half of the word alone.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

typedef unsigned __int128 Set;

enum { MOST_WORDS = 8, PLACES = 16, MOST_PAIRS = 16, SIGN = 15 };

struct Words {
    signed char pair[MOST_WORDS][PLACES], bit[MOST_WORDS][PLACES];
};

static int words, pairs, sign_bit;

static int count(Set set) {
    return __builtin_popcountll((unsigned long long)set) + __builtin_popcountll((unsigned long long)(set >> 64));
}

// What a word takes less when one mask keeps the signs of two or three of its pairs: see convert.keep_signs.
static int saved_by_masks(std::vector<int> turns, int *users, unsigned magnitude) {
    int total = 0;
    for (;;) {
        int best = 0, best_rotation = 0;
        std::vector<int> best_group;
        for (size_t i = 0; i < turns.size(); i++)
            for (size_t j = i + 1; j < turns.size(); j++)
                for (size_t k = j; k < turns.size(); k++) {
                    std::vector<int> group = {turns[i], turns[j]};
                    if (k > j) group.push_back(turns[k]);
                    bool covered = true;
                    for (int own : group)
                        for (int other : group) covered &= own == other || (magnitude >> ((SIGN + other - own) & 15) & 1);
                    if (!covered) continue;
                    unsigned rest = 0;
                    int before = 0;
                    for (int own : group) users[own]--;
                    for (int r = 0; r < PLACES; r++) rest |= (users[r] > 0) << r;
                    for (int own : group) users[own]++;
                    for (int r = 1; r < PLACES; r++) before += users[r] > 0;
                    for (int r = 0; r < PLACES; r++) {
                        if (r && !(rest >> r & 1)) continue;
                        int views = __builtin_popcount((rest | 1u << r) & ~1u);
                        for (int own : group) views += own != r;
                        int gain = before - views + (int)group.size() - 1;
                        if (gain > best) best = gain, best_rotation = r, best_group = group;
                    }
                }
        if (!best) return total;
        total += best;
        users[best_rotation]++;
        for (int own : best_group) {
            users[own]--;
            turns.erase(std::find(turns.begin(), turns.end(), own));
        }
    }
}

static int cost(const Words &order, int first) {
    Set parts[MOST_PAIRS] = {};
    int sign_word[MOST_PAIRS], sign_turn[MOST_PAIRS], magnitude[MOST_PAIRS], users[MOST_WORDS][PLACES] = {}, total = 0;
    bool whole[MOST_PAIRS];
    std::fill(magnitude, magnitude + pairs, -1), std::fill(whole, whole + pairs, true);
    for (int w = 0; w < words; w++)
        for (int p = 0; p < PLACES; p++) {
            int pair = order.pair[w][p], bit = order.bit[w][p];
            int turn = (p - (bit == sign_bit ? SIGN : first + bit)) & 15, part = w * PLACES + turn;
            parts[pair] |= (Set)1 << part;
            if (bit == sign_bit)
                sign_word[pair] = w, sign_turn[pair] = turn;
            else if (magnitude[pair] < 0)
                magnitude[pair] = part;
            else
                whole[pair] &= magnitude[pair] == part;
        }
    for (int pair = 0; pair < pairs; pair++) {
        total += count(parts[pair]);
        for (int part = 0; part < words * PLACES; part++) users[part / PLACES][part % PLACES] += parts[pair] >> part & 1;
    }
    unsigned places = ((1u << sign_bit) - 1) << first;
    for (int w = 0; w < words; w++) {
        std::vector<int> turns;
        for (int r = 1; r < PLACES; r++) total += users[w][r] > 0;
        for (int pair = 0; pair < pairs; pair++)
            if (sign_word[pair] == w && whole[pair] && magnitude[pair] != w * PLACES + sign_turn[pair])
                turns.push_back(sign_turn[pair]);
        if (turns.size() > 1) total -= saved_by_masks(turns, users[w], places);
    }
    return total;
}

// Pairs as they come; what is left of the words holds those that do not fit, bit by bit.
static Words start(int bits) {
    Words order;
    int whole = PLACES / bits, pair = 0, loose = whole * words * bits;
    for (int w = 0; w < words; w++)
        for (int p = 0; p < PLACES; p++) {
            int number = p < whole * bits ? (pair + p / bits) * bits + p % bits : loose++;
            order.pair[w][p] = number / bits, order.bit[w][p] = number % bits;
            if (p == PLACES - 1) pair += whole;
        }
    return order;
}

// Swaps two stretches, turns one around its word, or swaps two places.
static Words moved(const Words &order, std::mt19937 &random) {
    Words next = order;
    int kind = random() % 10, w = random() % words, v = random() % words, i = random() % 16, j = random() % 16;
    int length = kind < 4 ? 1 + random() % (sign_bit + 1) : kind < 8 ? 2 + random() % 15 : 1;
    int by = 1 + random() % std::max(1, length - 1), apart = (j - i) & 15;
    if (kind < 4 && w == v && (apart < length || 16 - apart < length)) return next;
    for (int k = 0; k < length; k++) {
        int from = (i + k) & 15, to = (j + k) & 15, turned = (i + (k + by) % length) & 15;
        if (kind < 4 || kind >= 8)
            std::swap(next.pair[w][from], next.pair[v][to]), std::swap(next.bit[w][from], next.bit[v][to]);
        else
            next.pair[w][from] = order.pair[w][turned], next.bit[w][from] = order.bit[w][turned];
    }
    return next;
}

int main(int count, char **values) {
    if (count != 9) return 1;
    int number[8];
    for (int i = 0; i < 8; i++) number[i] = atoi(values[i + 1]);
    int bits = number[0], firsts[2] = {number[2], number[3]}, aims[2] = {number[4], number[5]}, steps = number[6];
    words = number[1], pairs = PLACES * words / bits, sign_bit = bits - 1;
    std::mt19937 random(number[7]);
    std::uniform_real_distribution<> unit(0, 1);
    Words order = start(bits);
    double now = 1e9, best = 1e9;
    for (int step = 0; step < steps; step++) {
        double heat = 1.2 * pow(0.08, (double)step / steps), value = 0;
        Words next = step ? moved(order, random) : order;
        int costs[2] = {};
        for (int i = 0; i < 2; i++)
            if (firsts[i] >= 0)
                costs[i] = cost(next, firsts[i]), value += std::max(0, costs[i] - aims[i]) + 0.1 * costs[i];
        if (value > now && unit(random) >= exp((now - value) / heat)) continue;
        order = next, now = value;
        if (now > best - 1e-9) continue;
        best = now;
        printf("%d %d\n", costs[0], costs[1]);
        for (int w = 0; w < words; w++, printf("\n"))
            for (int p = 0; p < PLACES; p++)
                printf(" %c%c", 'a' + order.pair[w][p], order.bit[w][p] == sign_bit ? 's' : '0' + order.bit[w][p]);
        fflush(stdout);
    }
}
